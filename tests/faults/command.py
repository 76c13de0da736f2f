"""The command line in processes of its own, on a small dataset, for tests that end them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from conftest import CHILD_ENVIRONMENT, CONFIGS
from test_train import SMALL

from benchmarks.soak import saved
from deeplab_jax import checkpoint, lock

# Also where the tests themselves were started by `&` in a script, which has what follows ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
TESTS = Path(__file__).resolve().parents[1]
ENVIRONMENT = CHILD_ENVIRONMENT | {
    "PYTHONPATH": os.pathsep.join([str(TESTS), CHILD_ENVIRONMENT["PYTHONPATH"]])
}
QUICK = SMALL | {
    "model.backbone": "tiny_backbone:Tiny",  # compiles at once
    "optim.schedule": "constant",  # of which the number of steps is no part
    "eval.panels": 0,
    "eval.trimap_widths": (),
}


def command(root, workdir, mode="train", **changes) -> list[str]:
    """The arguments of a run on the folder `root`; "a__b" stands for the key "a.b"."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return [
        *(sys.executable, "-m", "deeplab_jax.main", f"--mode={mode}"),
        f"--config={CONFIGS}/v3plus.py:mobilenet_v2,folder",
        f"--workdir={workdir}",
        *[f"--config.{k}={v}" for k, v in (QUICK | {"data.root": root} | changes).items()],
    ]


def run(arguments, **options) -> subprocess.CompletedProcess:
    """Waits for its end; what it said is text."""
    options = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 300} | options
    return subprocess.run(arguments, **options)


class Started:
    """A run that is going on, with what it says in `log`; ended, come what may. Use it in a `with`.

    Args:
      arguments: those of `command`.
      log: a file.
    """

    def __init__(self, arguments, log, **options):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                arguments, env=ENVIRONMENT, stdout=file, stderr=file, **options
            )

    def until(self, there, seconds: float = 120) -> None:
        """Waits until there() is true."""
        deadline = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)

    def has_said(self, words: str) -> bool:
        return words in self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 120) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def assert_same(one, other, step) -> None:
    """The two workdirs hold the same checkpoint of a step, bit for bit."""
    one, other = saved(one, step), saved(other, step)
    assert one["position"] == other["position"]
    jax.tree.map(np.testing.assert_array_equal, one["state"], other["state"])


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def copied(workdir, to):
    """A workdir's copy, to do harm to."""
    return shutil.copytree(workdir, to)


def files_of(workdir, step) -> list[Path]:
    """Of a checkpoint."""
    folder = workdir / checkpoint.FOLDER / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents(folder) -> dict[str, bytes]:
    """Every file below a folder but the lock, for comparison."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != lock.FILE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
