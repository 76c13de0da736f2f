"""config.deterministic: XLA is told in time, or the user is."""

import os
import subprocess
import sys

import jax
import pytest
from conftest import CONFIGS

from deeplab_jax import config, main
from deeplab_jax.errors import ConfigError

IN_TIME = """
import os
import jax
import deeplab_jax.main
from deeplab_jax import runtime

runtime.make_deterministic()
assert jax.devices()  # XLA ends the process over a flag that it does not know
runtime.make_deterministic()  # it was in time
print(os.environ["XLA_FLAGS"])
"""


def test_in_time():
    """After the program's imports: none of them starts JAX."""
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    done = subprocess.run(
        [sys.executable, "-c", IN_TIME], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    given = "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"
    assert done.stdout.strip() == given


def test_too_late(tmp_path):
    assert jax.devices()
    before = os.environ["XLA_FLAGS"]
    settings = config.load(f"{CONFIGS}/v3plus.py:voc", {"deterministic": True})
    with pytest.raises(ConfigError, match="comes too late, JAX runs already"):
        main.run(settings, "train", tmp_path / "w")
    assert os.environ["XLA_FLAGS"] == before
    assert not (tmp_path / "w").exists()
