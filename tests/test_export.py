"""The exported program: the network's answers at any size, in a process without this package."""

import json
import os
import re
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import export, models
from deeplab_jax.data.labels import labels
from deeplab_jax.data.pipeline import padded_size
from deeplab_jax.errors import ConfigError
from deeplab_jax.predict import predict, probabilities

CROP = (49, 65)
SIZES = ((97, 145), (40, 33))
NAMES = ("background", "disk", "square", "star")


def network(**changed):
    module = models.build(
        **{"name": "v3", "backbone": "mobilenet_v2", "atrous_rates": None, "num_classes": 4}
        | {"logits_stddev": 3.0}
        | changed
    )
    channels = sum(changed.get("channel_groups", (3,)))
    variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 65, 65, channels), np.float32))
    return module, variables


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    module, variables = network()
    found = export.export(
        module, variables, folder, labels(NAMES), normalization="zero_mean", align_corners=True,
        crop_size=CROP, probabilities=True, origin="a test", sizes=SIZES,
    )  # fmt: skip
    return folder, module, variables, found


def test_the_program_is_checked_before_it_is_written(exported):
    folder, _, _, found = exported
    assert found == json.loads((folder / "parity.json").read_text())
    assert found["agrees"]
    assert found["platforms"] == ["cpu", "cuda", "rocm", "tpu"]
    sizes = [(case["images"], *case["size"]) for case in found["cases"]]
    assert sizes == [(1, 97, 145), (1, 40, 33), (3, 40, 33)]
    assert all(case["classes"] > 1 for case in found["cases"])
    assert all(case["largest_gap"] <= found["near_tie"] for case in found["cases"])


def test_what_its_readme_says_works_where_this_package_is_not(exported, tmp_path):
    """In a process of its own, whose import of deeplab_jax fails."""
    folder, module, variables, _ = exported
    rng = np.random.default_rng(1)
    image = np.kron(rng.integers(0, 256, (5, 9, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    for name in ("model.stablehlo", "labels.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    Image.fromarray(image).save(tmp_path / "photo.png")
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    code = code.replace("photo.jpg", "photo.png")
    assert len(code.splitlines()) <= 12
    block = "import sys\nfor name in ('deeplab_jax', 'flax', 'optax'): sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{block}{code}np.save('labels.npy', labels)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    answer = np.load(tmp_path / "labels.npy")
    assert answer.dtype == np.uint8
    np.testing.assert_array_equal(answer[0], predict(module, variables, image, crop_size=CROP))
    counted = {NAMES[i]: int((answer == i).sum()) for i in np.unique(answer)}
    assert done.stdout.strip() == str(counted)


def test_a_saved_model_says_the_same(exported, tmp_path):
    pytest.importorskip("tensorflow", reason="SavedModels need TensorFlow")
    _, module, variables, _ = exported
    found = export.export(
        module, variables, tmp_path, labels(NAMES), normalization="zero_mean", align_corners=True,
        saved_model=True, sizes=SIZES[1:], platforms=("cpu",),
    )  # fmt: skip
    assert [case["images"] for case in found["saved_model"]] == [1, 3]
    assert (tmp_path / "saved_model" / "saved_model.pb").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {
        *("saved_model", "model.stablehlo", "labels.json", "parity.json", "README.md")
    }


def test_a_saved_model_without_tensorflow_is_told(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    _, module, variables, _ = exported
    with pytest.raises(ConfigError, match=r"pip install 'deeplab_jax\[tensorflow\]'"):
        export.export(
            module, variables, tmp_path, labels(NAMES), normalization="zero_mean",
            align_corners=True, saved_model=True, sizes=SIZES[1:], platforms=("cpu",),
        )  # fmt: skip


@pytest.mark.parametrize(
    "crop_size", [None, (65, 129), (512, 512), (361, 481), (49, 65), (64, 66), (1, 2)]
)
def test_its_canvas_is_that_of_prediction(crop_size):
    for height in (*range(1, 140), 513, 514):
        size = (height, 3 * height)
        assert export.canvas_size(size, crop_size) == padded_size(size, crop_size)


def test_a_program_that_disagrees_is_told(exported):
    """A real disagreement: what is compared with it has other weights."""
    folder, module, *_ = exported
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    _, others = network()
    others = jax.tree.map(lambda x: -x, others)

    live = partial(probabilities, module, others, crop_size=CROP, align_corners=True)
    found = export.parity(jax.jit(program.call), live, 3, ((65, 65),))
    assert not found["agrees"]
    assert found["cases"][0]["different"] > 0


def test_it_is_checked_where_it_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"export.platforms=\('cuda',\) lacks cpu"):
        export.export(
            *network(), tmp_path / "out", labels(NAMES), normalization="zero_mean",
            align_corners=True, platforms=("cuda",),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
