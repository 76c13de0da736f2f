"""Several processes as one run, real ones: the same steps as one, however some of them end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import CHILD_ENVIRONMENT, CONFIGS, write_folder
from test_train import SMALL

from deeplab_jax import checkpoint

ENVIRONMENT = CHILD_ENVIRONMENT | {
    "JAX_ENABLE_X64": "1",
    "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), CHILD_ENVIRONMENT["PYTHONPATH"]]),
}
CHANGES = SMALL | {
    "model.backbone": "tiny_backbone:Tiny",
    "model.dtype": "float64",
    "optim.schedule": "constant",  # of which the number of steps is no part
    "optim.learning_rate": 0.002,
    "train.steps": 100_000,
    "log_every": 1,
}


def slurm_of(task: int, count: int, job: int) -> dict[str, str]:
    """What SLURM tells a task of `count` on this machine."""
    given = {"JOB_ID": job, "NTASKS": count, "PROCID": task, "LOCALID": task, "STEP_NUM_NODES": 1}
    return {f"SLURM_{key}": str(value) for key, value in given.items()} | {
        "SLURM_STEP_NODELIST": "localhost"
    }


class Run:
    """Processes of the command line on one workdir; ended, come what may."""

    def __init__(self, root, workdir, count, *, slurm=False, mode="train", last=None, **changes):
        """`last` is another workdir, for the last process."""
        changes = CHANGES | {"data.root": str(root)} | changes
        arguments = [f"--config.{key}={value}" for key, value in changes.items()]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.processes, self.logs = [], []
        for i in range(count):
            together, environment = [], dict(ENVIRONMENT)
            if slurm:
                together = ["--distributed"]
                environment |= slurm_of(i, count, job=port)
            elif count > 1:
                together = [f"--coordinator=localhost:{port}", f"--processes={count}"]
                together.append(f"--process={i}")
            self.logs.append(workdir.with_name(f"{workdir.name}.{i}.log"))
            command = [
                *(sys.executable, "-m", "deeplab_jax.main"),
                f"--config={CONFIGS}/v3plus.py:mobilenet_v2,folder",
                f"--workdir={last if last and i == count - 1 else workdir}",
                f"--mode={mode}",
                *arguments,
                *together,
            ]
            with self.logs[-1].open("w") as log:
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, index: int) -> str:
        return self.logs[index].read_text()

    def wait_for_step(self, least: int) -> None:
        deadline = time.monotonic() + 300
        while not any(int(n) >= least for n in re.findall(r"^step (\d+)/", self.said(0), re.M)):
            ended = [process.poll() for process in self.processes]
            assert ended == [None] * len(ended), [self.said(i) for i in range(len(ended))]
            assert time.monotonic() < deadline, self.said(0)
            time.sleep(0.02)

    def codes(self, seconds: float = 300) -> list[int]:
        return [process.wait(seconds) for process in self.processes]


def outcome(workdir):
    """({step: loss}, variables) of a finished run."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return losses, checkpoint.read_variables(workdir)[0]


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_killed_go_on_as_one_that_never_was(tmp_path):
    root, workdir = write_folder(tmp_path / "data", count=7), tmp_path / "run"

    # SIGTERM to one is a checkpoint of all, of one step.
    with Run(root, workdir, 2, **{"train.checkpoint_every": 0}) as run:
        run.wait_for_step(4)
        run.processes[1].send_signal(signal.SIGTERM)
        assert run.codes() == [75, 75]
        stopped = checkpoint.latest_step(workdir)
        assert f"SIGTERM: step {stopped} of 100000 is saved" in run.said(0)
        assert stopped >= 4
        assert "is saved" not in run.said(1)  # one speaks for both

    # One is lost: the other says so, in bounded time, whichever it was.
    for lost in (1, 0):
        before = checkpoint.latest_step(workdir)
        with Run(root, workdir, 2, **{"train.checkpoint_every": 5}) as run:
            run.wait_for_step(before + 8)
            run.processes[lost].kill()
            killed = time.monotonic()
            assert run.processes[1 - lost].wait(150) == 6
            assert time.monotonic() - killed < 130
            told = run.said(1 - lost)
            assert "another process of this run has ended or cannot be reached" in told
            assert "Traceback" not in told
            assert f"resuming from step {before}" in run.said(0)
        assert checkpoint.latest_step(workdir) > before

    # One process goes on alone, where another has done all the steps by itself.
    last = checkpoint.latest_step(workdir) + 5
    alone = tmp_path / "alone"
    with (
        Run(root, workdir, 1, **{"train.steps": last}) as resumed,
        Run(root, alone, 1, **{"train.steps": last}) as whole,
    ):
        assert resumed.codes() + whole.codes() == [0, 0], resumed.said(0) + whole.said(0)
    (losses, variables), (expected, of_alone) = outcome(workdir), outcome(alone)
    assert list(losses) == list(expected) == list(range(1, last + 1))
    np.testing.assert_allclose([*losses.values()], [*expected.values()], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), variables, of_alone)


@pytest.mark.slow
def test_two_tasks_of_slurm_evaluate_what_one_process_does(tmp_path):
    root = write_folder(tmp_path / "data", count=5)
    found = {}
    for count in (1, 2):
        workdir = tmp_path / str(count)
        changes = {"train.steps": 2, "eval.image_counts": True}
        with Run(root, workdir, count, slurm=count > 1, **changes) as run:
            assert run.codes() == [0] * count, run.said(0) + run.said(count - 1)
        results = json.loads((workdir / "eval" / "results.json").read_text())
        results.pop("settings")
        found[count] = results, dict(np.load(workdir / "eval" / "counts.npz"))
        assert "parameters, " in run.said(0)
    assert "parameters, " not in run.said(1)  # one speaks for both
    # Of one image the second process has none.
    single = write_folder(tmp_path / "single", count=1)
    with Run(single, workdir, 2, mode="eval", **{"eval.image_counts": True}) as run:
        assert run.codes() == [0, 0], run.said(0) + run.said(1)
    with np.load(workdir / "eval" / "counts.npz") as counts:
        assert len(counts["whole"]) == 1

    # Workdirs that are not one are refused, not waited for.
    with Run(root, workdir, 2, last=tmp_path / "other") as run:
        assert run.codes() == [2, 2]
        assert "see checkpoints of the steps 2, none" in run.said(0)

    for results in zip(*(found[count][0].items() for count in (1, 2)), strict=True):
        assert results[0] == results[1]
    for key, counts in found[1][1].items():
        np.testing.assert_array_equal(counts, found[2][1][key])


def test_a_run_of_several_that_cannot_begin_says_what_it_lacks(tmp_path):
    for flags, words in (
        (["--distributed"], "--coordinator=HOST:PORT --processes=N --process=I"),
        (["--distributed", "--mode=predict"], "--mode=predict is done by one process"),
        (["--coordinator=localhost:1", "--processes=2", "--process=2"], "process_id < num_proc"),
    ):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "deeplab_jax.main", f"--config={CONFIGS}/v3plus.py"),
                f"--workdir={tmp_path}",
                *flags,
            ],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
