"""A run that is disturbed again and again ends as one that never was (benchmarks/soak.py)."""

import re
import sys

import command
import pytest
from conftest import ROOT


@pytest.mark.slow
def test_a_disturbed_run_ends_with_the_parameters_of_an_undisturbed_one(tmp_path):
    done = command.run(
        [
            *(sys.executable, "benchmarks/soak.py", f"--out={tmp_path}"),
            *("--steps=120", "--disturbances=6", "--"),
            "--config.model.backbone=tiny_backbone:Tiny",
        ],
        cwd=ROOT,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b0 of \d+ arrays of the state differ", done.stdout)
    assert re.search("remove|flip|truncate", done.stdout)
