"""A1 to A5: runs that are killed, terminated, interrupted; real processes, real signals.

Each ends, after all, with the parameters of a run that nothing happened to, bit for bit.
"""

import random
import signal
import subprocess
import sys
import time

import command
import pytest
from conftest import write_folder

from deeplab_jax import checkpoint, lock

ENDLESS = {"train__steps": 100_000, "log_every": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "data")


def last(workdir) -> int:
    return checkpoint.latest_step(workdir) or 0


def goes_on_as_if_nothing_had_been(root, workdir):
    """Resumes, and compares where that has come to with a run that nothing happened to."""
    steps, whole = last(workdir) + 5, workdir.with_name("undisturbed")
    for each in (workdir, whole):
        done = command.run(command.command(root, each, train__steps=steps))
        assert done.returncode == 0, done.stderr
    command.assert_same(workdir, whole, steps)


@pytest.mark.fault("A1")
def test_killed_twenty_times_while_saving(root, tmp_path):
    workdir, chance, half_written = tmp_path / "run", random.Random(0), 0
    arguments = command.command(root, workdir, train__checkpoint_every=1, **ENDLESS)
    for _ in range(20):
        before = last(workdir)
        with command.Started(arguments, tmp_path / "log") as run:
            run.until(lambda before=before: last(workdir) > before)
            time.sleep(0.15 * chance.random())
            run.send(signal.SIGKILL)
            assert run.end() == -signal.SIGKILL
        assert last(workdir) > before
        half_written += any((workdir / checkpoint.FOLDER).glob("*-tmp"))
    assert half_written  # some of the kills came in the middle
    goes_on_as_if_nothing_had_been(root, workdir)
    assert not list((workdir / checkpoint.FOLDER).glob("*-tmp"))


@pytest.mark.fault("A2")
def test_killed_between_steps(root, tmp_path):
    workdir = tmp_path / "run"
    arguments = command.command(root, workdir, train__checkpoint_every=10, **ENDLESS)
    for _ in range(2):
        before = last(workdir)
        with command.Started(arguments, tmp_path / "log") as run:
            run.until(lambda b=before, r=run: last(workdir) > b and r.has_said(f"step {b + 14}/"))
            run.send(signal.SIGKILL)
            run.end()
        assert last(workdir) > before
    goes_on_as_if_nothing_had_been(root, workdir)


def evaluating(root, workdir, **changes):
    """The arguments of a run whose evaluations, of 100 images at 5 scales, take a while."""
    images = write_folder(root, count=100) if not root.exists() else root
    often = {"train__checkpoint_every": 5, "train__eval_every": 5, "log_every": 1}
    changes = often | {"eval__eval_scales": (0.5, 0.75, 1.0, 1.25, 1.5)} | changes
    return command.command(images, workdir, **changes)


def evaluations(workdir) -> dict[int, dict]:
    found = [line for line in command.lines(workdir) if "split" in line]
    assert len({line["step"] for line in found}) == len(found)  # none twice
    return {line["step"]: line for line in found}


@pytest.mark.fault("A3")
def test_killed_in_an_evaluation_which_is_made_again(tmp_path):
    root, workdir, whole = tmp_path / "data", tmp_path / "run", tmp_path / "whole"
    arguments = evaluating(root, workdir, train__steps=15)
    with command.Started(arguments, tmp_path / "log") as run:
        run.until(lambda: last(workdir) == 10)  # which its evaluation follows at once
        run.send(signal.SIGKILL)
        run.end()
    assert list(evaluations(workdir)) == [5]
    assert checkpoint.read_best(workdir).step == 5
    for again in (arguments, evaluating(root, whole, train__steps=15)):
        done = command.run(again)
        assert done.returncode == 0, done.stderr
    assert evaluations(workdir) == evaluations(whole)
    assert set(evaluations(whole)) == {5, 10, 15}
    assert checkpoint.read_best(workdir) == checkpoint.read_best(whole)
    command.assert_same(workdir, whole, 15)


@pytest.mark.fault("A4")
def test_sigterm_saves_the_step_it_comes_in(root, tmp_path):
    workdir = tmp_path / "run"
    arguments = command.command(root, workdir, train__checkpoint_every=0, **ENDLESS)
    with command.Started(arguments, tmp_path / "log") as run:
        run.until(lambda: run.has_said("step 7/"))
        run.send(signal.SIGTERM)
        assert run.end(seconds=30) == 75
        stopped = last(workdir)
        assert run.has_said(f"SIGTERM: step {stopped} of 100000 is saved in {workdir}")
        assert not run.has_said("Traceback")
    assert stopped == command.lines(workdir)[-1]["step"] >= 7
    goes_on_as_if_nothing_had_been(root, workdir)


@pytest.mark.fault("A4")
def test_sigterm_in_an_evaluation_does_not_wait_for_its_end(tmp_path):
    root, workdir = tmp_path / "data", tmp_path / "run"
    arguments = evaluating(root, workdir, train__steps=15, train__checkpoint_every=100)
    with command.Started(arguments, tmp_path / "log") as run:
        run.until(lambda: run.has_said("step 5/"))
        time.sleep(0.1)
        run.send(signal.SIGTERM)
        assert run.end(seconds=30) == 75, run.log.read_text()
    assert last(workdir) == 5  # at which no checkpoint was due
    assert not evaluations(workdir)
    assert command.run(arguments).returncode == 0
    assert set(evaluations(workdir)) == {5, 10, 15}


@pytest.mark.fault("A5")
def test_the_first_ctrl_c_saves(root, tmp_path):
    workdir = tmp_path / "run"
    arguments = command.command(root, workdir, train__checkpoint_every=0, **ENDLESS)
    with command.Started(arguments, tmp_path / "log") as run:
        run.until(lambda: run.has_said("step 4/"))
        run.send(signal.SIGINT)
        assert run.end() == 75
        assert run.has_said("is saved in")
        assert not run.has_said("Traceback")
    assert last(workdir) >= 4
    goes_on_as_if_nothing_had_been(root, workdir)


@pytest.mark.fault("A5")
def test_ctrl_c_that_a_script_has_ignored_stays_ignored(root, tmp_path):
    workdir, steps = tmp_path / "run", 30
    arguments = command.command(root, workdir, train__steps=steps, log_every=1)
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with command.Started([sys.executable, "-c", ignoring, *arguments], tmp_path / "log") as run:
        run.until(lambda: run.has_said("step 4/"))
        run.send(signal.SIGINT)
        assert run.end() == 0
    assert last(workdir) == steps


@pytest.mark.fault("A5")
def test_the_second_ctrl_c_ends_at_once_and_harms_nothing(root, tmp_path):
    workdir = tmp_path / "run"
    assert command.run(command.command(root, workdir, train__steps=3)).returncode == 0
    # A step takes long enough here that the second comes before what the first asks for is done.
    slow = {"train__batch_size": 64, "data__crop_size": (257, 257), "data__allow_change": True}
    arguments = command.command(root, workdir, train__checkpoint_every=0, **ENDLESS | slow)
    with command.Started(arguments, tmp_path / "log") as run:
        run.until(lambda: run.has_said("step 5/"))
        run.send(signal.SIGINT)
        run.until(lambda: run.has_said("SIGINT: saving after this step"))
        run.send(signal.SIGINT)
        begun = time.monotonic()
        assert run.end() == -signal.SIGINT
        assert time.monotonic() - begun < 5
    assert last(workdir) == 3
    goes_on_as_if_nothing_had_been(root, workdir)


@pytest.mark.fault("A5")
def test_ctrl_c_before_the_first_step_is_no_stack_trace(root, tmp_path):
    workdir = tmp_path / "run"
    with command.Started(command.command(root, workdir, **ENDLESS), tmp_path / "log") as run:
        run.until(lambda: (workdir / lock.FILE).exists())
        run.send(signal.SIGINT)
        assert run.end() in (75, 130)
        assert not run.has_said("Traceback")


@pytest.mark.fault("A4")
@pytest.mark.parametrize("moment", ["last save", "final evaluation"])
def test_sigterm_when_all_steps_are_made(tmp_path, moment):
    root, workdir = tmp_path / "data", tmp_path / "run"
    arguments = evaluating(root, workdir, train__steps=3, train__checkpoint_every=0)
    with command.Started(arguments, tmp_path / "log") as run:
        run.until(lambda: run.has_said("step 3/"))
        if moment == "final evaluation":
            run.until(lambda: last(workdir) == 3)
        run.send(signal.SIGTERM)
        assert run.end(seconds=30) == 75, run.log.read_text()
        told = "trained, step 3 is in" if moment == "final evaluation" else ""
        assert run.has_said(f"SIGTERM: {told}")
    assert last(workdir) == 3
    done = command.run(arguments)
    assert done.returncode == 0, done.stderr
    assert "nothing left to train" in done.stdout
    assert set(evaluations(workdir)) == {3}


@pytest.mark.fault("A4")
def test_sigterm_while_resuming_goes_no_further(root, tmp_path):
    workdir = tmp_path / "run"
    assert command.run(command.command(root, workdir, train__steps=3)).returncode == 0
    with command.Started(command.command(root, workdir, **ENDLESS), tmp_path / "log") as run:
        run.until(lambda: run.has_said("resuming from step 3"))
        run.send(signal.SIGTERM)
        assert run.end(seconds=30) == 75
    goes_on_as_if_nothing_had_been(root, workdir)


@pytest.mark.fault("A5")
def test_ctrl_c_that_ends_the_reader_of_the_output_saves_all_the_same(root, tmp_path):
    workdir = tmp_path / "run"
    arguments = command.command(root, workdir, train__checkpoint_every=0, **ENDLESS)
    run = subprocess.Popen(
        arguments, env=command.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    while b"step 3/" not in run.stdout.readline():
        pass
    run.send_signal(signal.SIGINT)
    run.stdout.close()  # as `| tee log` is gone
    assert run.wait(60) == 75
    assert last(workdir) >= 3
