"""Strict JAX, two devices, and the paths that tests share."""

import atexit
import os
import shutil
import sys
import tempfile
import tracemalloc
from collections import defaultdict
from pathlib import Path

# Before jax starts: a mesh of two CPU devices, so that every test of training is sharded, and
# machine code that is compiled quickly: most tests run a program once or twice.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")  # which has the last word
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile the same few programs again and again, some in processes of their own: all of them,
# pytest's workers too, share a cache, which goes with the process that made it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="deeplab_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import folder, labels
from deeplab_jax.models import mobilenet_v2, resnet, vgg, xception

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
GOLDEN = Path(__file__).parent / "golden"
SHARED = ROOT.parent / "shared"

# Of the programs that tests start: they have one device.
CHILD_ENVIRONMENT = os.environ | {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}

sys.path += [str(CONFIGS), str(ROOT)]  # configs import their neighbours; experiments is a package
jax.config.update("jax_numpy_dtype_promotion", "strict")


def write_folder(root: Path, count: int = 4, size=(40, 50), classes: int = 3) -> Path:
    """A small dataset in the folder layout: real JPEG images and palette PNG masks."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for i in range(count):
        mask = rng.integers(0, classes, size).astype(np.uint8)
        mask[:2] = 255
        picture = Image.fromarray(mask)
        picture.putpalette(bytes(range(256)) * 3)
        picture.save(root / "masks" / f"scene {i}.png")
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"scene {i}.jpg")
    return root


def pairs(root, split="all", classes=3, ignore_label=255, label_map=None):
    """A split of a folder of unnamed classes."""
    found = labels.labels((), classes, ignore_label=ignore_label)
    return folder.source(root, split, found.mapped(label_map) if label_map else found)


@pytest.fixture
def data_folder(tmp_path):
    return write_folder(tmp_path / "data")


@pytest.fixture
def fewest_layers(monkeypatch):
    """Of what a backbone repeats, as little as its taps and rates need: quick to compile."""
    for name in resnet.UNITS:
        monkeypatch.setitem(resnet.UNITS, name, (3, 2, 2, 3))
    for name, units in xception.UNITS.items():
        few = [u for u in units if u.name[:6] != "middle" or u.name == "middle_unit1"]
        monkeypatch.setitem(xception.UNITS, name, few)
    monkeypatch.setattr(vgg, "BLOCKS", tuple((1, channels) for _, channels in vgg.BLOCKS))
    stages = [(t, c, min(n, 2) if c == 24 else 1, s) for t, c, n, s in mobilenet_v2.STAGES]
    blocks = [
        mobilenet_v2.Block(t, c, s if i == 0 else 1) for t, c, n, s in stages for i in range(n)
    ]
    monkeypatch.setattr(mobilenet_v2, "STAGES", stages)
    monkeypatch.setattr(mobilenet_v2, "BLOCKS", blocks)
    monkeypatch.setattr(mobilenet_v2, "DECODER_BLOCKS", {2: 4, 3: 8, 5: 16})


@pytest.fixture
def little_memory():
    """The test may take 32 MB of Python's memory."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25


# tests/faults: each of them injects a fault for real, and @pytest.mark.fault says which.
FAULTS = {f"{k}{i}" for k, n in zip("ABCDEF", (16, 6, 18, 6, 6, 12)) for i in range(1, n + 1)}


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("fault"):
            assert set(mark.args) <= FAULTS, f"{item.nodeid}: there is no fault {mark.args}"
            item.user_properties += [("fault", number) for number in mark.args]


def pytest_terminal_summary(terminalreporter):
    """One line: how many faults behave as specified, in every test that injects them."""
    outcomes = defaultdict(set)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            for key, number in getattr(report, "user_properties", ()):
                if key == "fault":
                    outcomes[number].add(outcome)
    if outcomes:
        sound = {number for number, seen in outcomes.items() if seen == {"passed"}}
        others = sorted(FAULTS - sound, key=lambda number: (number[0], int(number[1:])))
        missing = f"; not: {', '.join(others)}" if others else ""
        terminalreporter.write_line(
            f"{len(sound)} of {len(FAULTS)} faults behave as specified{missing}"
        )
