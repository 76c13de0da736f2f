"""A6 to A16 and B6: checkpoints that are damaged, foreign, unwritable, in use, of another model."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time

import command
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import write_folder

from benchmarks.soak import flip
from deeplab_jax import __version__, checkpoint, digests, lock
from deeplab_jax.errors import ConfigError, ResourceError, WeightsError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A workdir with the checkpoints of steps 10, 20 and 30; do no harm to it."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    done = command.run(command.command(root, workdir, train__steps=30))
    assert done.returncode == 0, done.stderr
    return workdir


def goes_back(workdir, trained, capsys) -> str:
    """Asserts that step 20 is what is used, with a warning; returns that."""
    found, step = checkpoint.read_variables(workdir)
    assert step == 20
    expected = checkpoint.read_variables(trained, 20)[0]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    said = capsys.readouterr().out
    assert said.startswith(f"warning: {workdir}/checkpoints/30: damaged, ")
    assert said.endswith("; using step 20\n")
    return said


def is_blob(path) -> bool:
    return path.parent.name == "d"


@pytest.mark.fault("A6")
def test_a_bit_turned_round_in_an_array_is_found(trained, tmp_path, capsys):
    chance = random.Random(0)
    for i in range(20):
        workdir = command.copied(trained, tmp_path / str(i))
        blobs = [path for path in command.files_of(workdir, 30) if is_blob(path)]
        flip(chance.choice(blobs), chance)
        assert "is not what was saved" in goes_back(workdir, trained, capsys)


@pytest.mark.fault("A7")
def test_a_bit_turned_round_in_metadata_or_digests_is_found(trained, tmp_path, capsys):
    chance = random.Random(1)
    for i in range(40):
        workdir = command.copied(trained, tmp_path / str(i))
        others = [path for path in command.files_of(workdir, 30) if not is_blob(path)]
        others = [path for path in others if path not in unread(workdir)]
        path = others[i % len(others)]
        flip(path, chance)
        assert path.name in goes_back(workdir, trained, capsys)


def unread(workdir) -> list:
    """The files of step 30 that nobody reads."""
    folder = workdir / "checkpoints" / "30"
    return [folder / "commit_success.txt", folder / "_CHECKPOINT_METADATA"]


@pytest.mark.fault("A7", "A9")
def test_nothing_is_read_from_what_orbax_notes_of_times(root, trained, tmp_path):
    """It writes this file when the digests are made: they do not cover it."""
    for i, harm in enumerate((lambda path: path.write_text("garbage"), lambda path: path.unlink())):
        workdir = command.copied(trained, tmp_path / str(i))
        harm(workdir / "checkpoints" / "30" / "_CHECKPOINT_METADATA")
        done = command.run(command.command(root, workdir, train__steps=31))
        assert done.returncode == 0, done.stderr
        assert "resuming from step 30" in done.stdout
        if i:
            command.assert_same(tmp_path / "0", workdir, 31)


@pytest.mark.fault("A8")
def test_a_truncated_file_is_found(trained, tmp_path, capsys):
    workdir = command.copied(trained, tmp_path / "run")
    largest = max(command.files_of(workdir, 30), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert largest.name in goes_back(workdir, trained, capsys)


@pytest.mark.fault("A9")
def test_a_file_that_is_gone_is_found_whichever_it_is(trained, tmp_path, capsys):
    for i, path in enumerate(command.files_of(trained, 30)):
        if path in unread(trained):
            continue
        name = path.relative_to(trained)
        workdir = command.copied(trained, tmp_path / str(i))
        (workdir / name).unlink()
        assert path.name in goes_back(workdir, trained, capsys)


@pytest.mark.fault("A6", "A8")
def test_training_goes_on_from_the_step_before_and_ends_alike(root, trained, tmp_path):
    workdir = command.copied(trained, tmp_path / "run")
    blob = next(path for path in command.files_of(workdir, 30) if is_blob(path))
    flip(blob, random.Random(2))
    done = command.run(command.command(root, workdir, train__steps=30))
    assert done.returncode == 0, done.stderr
    assert "30: damaged" in done.stdout
    assert "resuming from step 20" in done.stdout
    command.assert_same(workdir, trained, 30)
    assert (workdir / "damaged" / "30" / "state").is_dir()  # for whoever wants to look


@pytest.mark.fault("A10")
def test_where_every_step_is_damaged_nothing_is_overwritten(root, trained, tmp_path):
    workdir = command.copied(trained, tmp_path / "run")
    for step in (10, 20, 30):
        blob = next(path for path in command.files_of(workdir, step) if is_blob(path))
        flip(blob, random.Random(step))
    before = command.contents(workdir)
    for mode in ("train", "eval"):
        done = command.run(command.command(root, workdir, mode, train__steps=40))
        assert done.returncode == 4
        assert "30: damaged" in done.stderr
        assert "no other step is sound (3 looked at)" in done.stderr
        assert "Traceback" not in done.stderr
    assert command.contents(workdir) == before


@pytest.mark.fault("A11")
def test_what_is_not_ours_stays(root, trained, tmp_path):
    workdir = command.copied(trained, tmp_path / "run")
    folder = workdir / "checkpoints"
    ours = [folder / f"{step}.orbax-checkpoint-tmp" for step in (35, 40)]
    foreign = [folder / "notes-tmp", folder / "mine.orbax-checkpoint-tmp", folder / "12-tmp"]
    for path in (*ours, *foreign):
        path.mkdir()
        (path / "text").write_text("words")
    for path in (folder / "README", folder / "99", workdir / "plan.txt", workdir / "x.tmp"):
        path.write_text("words")
        foreign.append(path)
    done = command.run(command.command(root, workdir, train__steps=31))
    assert done.returncode == 0, done.stderr
    assert "resuming from step 30" in done.stdout
    assert checkpoint.latest_step(workdir) == 31
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in foreign)


@pytest.mark.fault("A12")
def test_a_full_disk_ends_the_run_and_harms_nothing(root, trained, tmp_path):
    """The kernel refuses to let files grow past a limit set while it trains."""
    workdir, often = command.copied(trained, tmp_path / "run"), {"train__checkpoint_every": 100}
    arguments = command.command(root, workdir, train__steps=100_000, log_every=10, **often)
    with command.Started(arguments, tmp_path / "log") as run:
        run.until(lambda: (checkpoint.latest_step(workdir) or 0) > 30)
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (2**15, 2**15))
        assert run.end() == 6, run.log.read_text()
        said = run.log.read_text()
    failed, intact = map(int, re.search(r"(\d+): the check.*step (\d+) is intact", said).groups())
    assert intact == failed - 100 == checkpoint.latest_step(workdir)
    assert "Free space on that disk" in said
    assert "Traceback" not in said
    assert command.lines(workdir)[-1]["step"] < failed + 100  # not only when the next was due
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    assert checkpoint.sound_step(workdir) == intact
    assert command.run(command.command(root, workdir, train__steps=intact + 1)).returncode == 0


# Runs the program it is given without CAP_DAC_OVERRIDE: permissions then count for root, too.
WITHOUT_ROOTS_RIGHTS = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.fault("A13")
def test_a_workdir_without_permission_is_refused_before_anything_compiles(root, tmp_path):
    (tmp_path / "closed").mkdir()
    os.chmod(tmp_path / "closed", 0o555)
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "closed", tmp_path / "closed" / "new", tmp_path / "file"):
        plain = command.command(root, workdir)
        done = command.run([sys.executable, "-c", WITHOUT_ROOTS_RIGHTS, *plain])
        assert done.returncode == 6, done.stderr
        assert str(workdir) in done.stderr
        assert "Traceback" not in done.stderr
        assert "compiling" not in done.stdout


@pytest.mark.fault("A14")
def test_a_second_run_in_a_workdir_is_refused_until_the_first_is_gone(root, tmp_path):
    workdir = tmp_path / "run"
    arguments = command.command(root, workdir, train__steps=100_000, train__checkpoint_every=5)
    with command.Started(arguments, tmp_path / "log") as run:
        run.until(lambda: checkpoint.latest_step(workdir) is not None)
        second = command.run(arguments)
        assert second.returncode == 6
        assert f"{workdir} is in use by process {run.process.pid}" in second.stderr
        assert run.process.poll() is None
        run.send(signal.SIGKILL)
        run.end()
    assert (workdir / lock.FILE).exists()  # left behind, and no obstacle
    step = checkpoint.latest_step(workdir) + 1
    assert command.run(command.command(root, workdir, train__steps=step)).returncode == 0


@pytest.mark.fault("A14")
def test_a_lock_is_held_once_and_ends_with_its_block(tmp_path):
    with lock.held(tmp_path / "run"):
        with pytest.raises(ResourceError, match="is in use by process"):
            lock.held(tmp_path / "run").__enter__()
    with lock.held(tmp_path / "run"):
        pass


@pytest.mark.fault("A15")
def test_other_classes_are_refused_and_benign_changes_told(root, trained, tmp_path):
    workdir = command.copied(trained, tmp_path / "run")
    before = command.contents(workdir)
    done = command.run(command.command(root, workdir, model__num_classes=5))
    assert done.returncode == 4
    assert re.search(
        r"belongs to another model.*\['logits'\]\['bias'\]: \(3,\) there, \(5,\) here", done.stderr
    )
    assert command.contents(workdir) == before
    benign = {"optim__learning_rate": 0.01, "train__steps": 31, "model__output_stride": 8}
    done = command.run(command.command(root, workdir, **benign))
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "resuming with" in line]
    assert "warning: resuming with optim.learning_rate=0.01, it was 0.05" in told
    assert "warning: resuming with model.output_stride=8, it was 16" in told
    assert not any("optim.momentum" in line for line in told)


@pytest.mark.fault("A16")
def test_a_checkpoint_of_an_older_version_is_read(root, trained, tmp_path):
    """As the versions before the digests wrote them."""
    workdir = command.copied(trained, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    content = command.saved(trained, 30)
    del content["position"]["format"], content["position"]["skipped"]
    handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(workdir / "checkpoints", item_handlers=handlers) as manager:
        arguments = {
            "state": ocp.args.StandardSave(content["state"]),
            "position": ocp.args.JsonSave(content["position"]),
        }
        manager.save(30, args=ocp.args.Composite(**arguments))
    done = command.run(command.command(root, workdir, train__steps=35))
    assert done.returncode == 0, done.stderr
    assert "of an older version, without digests" in done.stdout
    assert (workdir / "checkpoints" / "35" / digests.FILE).exists()
    whole = command.copied(trained, tmp_path / "whole")
    assert command.run(command.command(root, whole, train__steps=35)).returncode == 0
    command.assert_same(workdir, whole, 35)


@pytest.mark.fault("A16")
@pytest.mark.parametrize(
    "head", ["# deeplab_jax 7.1, checkpoints of format 9", "# something new altogether"]
)
def test_a_checkpoint_of_a_newer_version_is_refused_with_both(trained, tmp_path, head):
    workdir = command.copied(trained, tmp_path / "run")
    path = workdir / "checkpoints" / "30" / digests.FILE
    lines = [head, *path.read_text().splitlines()[1:-1]]
    text = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f"{text}# {digest}  the lines above\n")
    version = "7.1" if "7.1" in head else "a later version"
    with pytest.raises(WeightsError, match=rf"{version}; this is {__version__}.*formats 1 to 2"):
        checkpoint.read_variables(workdir)


@pytest.mark.fault("B6")
def test_a_best_step_that_is_damaged_is_forgotten(trained, tmp_path):
    workdir = command.copied(trained, tmp_path / "run")
    assert checkpoint.read_best(workdir).step == 30
    (workdir / "checkpoints" / "30" / digests.FILE).unlink()
    assert checkpoint.recover(workdir) == 20
    assert checkpoint.read_best(workdir) is None
    assert checkpoint.latest_step(workdir) == 20


@pytest.mark.fault("A12")
def test_an_error_of_another_kind_is_not_hidden_by_a_save_that_fails(tmp_path):
    """As when the line of metrics.jsonl is the first that has no room."""
    state = {"x": np.random.default_rng(0).random(2**16)}
    former = resource.getrlimit(resource.RLIMIT_FSIZE)

    def breaks():
        with checkpoint.Checkpoints(tmp_path, 2) as kept:
            kept.save(1, state, {})
            kept.finish()
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, former[1]))
                kept.save(2, state, {})
                raise KeyError("ours")
            finally:
                time.sleep(1)  # until the save has failed
                resource.setrlimit(resource.RLIMIT_FSIZE, former)

    with pytest.raises(KeyError, match="ours"):
        breaks()
    assert checkpoint.sound_step(tmp_path) == 1
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


@pytest.mark.fault("B6")
def test_the_best_checkpoint_is_kept_across_a_resumption(root, tmp_path):
    workdir = tmp_path / "run"
    often = {"train__eval_every": 5, "train__checkpoint_every": 5, "train__keep_checkpoints": 1}
    often |= {"optim__learning_rate": 0.5, "optim__schedule": "constant"}
    for steps in (25, 60):
        assert (
            command.run(command.command(root, workdir, train__steps=steps, **often)).returncode == 0
        )
        found = {x["step"]: x["mean_iou"] for x in command.lines(workdir) if "split" in x}
        best = checkpoint.read_best(workdir)
        assert best.value == max(found.values()) == found[best.step]
        assert best.step == next(step for step, value in found.items() if value == best.value)
        kept = {int(p.name) for p in (workdir / "checkpoints").iterdir()}
        assert kept == {best.step, steps}
    assert best.step < 60, "this seed's last is its best: the test shows nothing"
    done = command.run(command.command(root, workdir, "eval", checkpoint="best"))
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "eval" / "results.json").read_text())["mean_iou"] == pytest.approx(
        best.value
    )
    shutil.rmtree(workdir / "checkpoints" / str(best.step))
    with pytest.raises(WeightsError, match=f"{best.step}: no such checkpoint; there are 60"):
        checkpoint.sound_step(workdir, "best")
    with pytest.raises(ConfigError, match="takes newest, best or the number"):
        checkpoint.sound_step(workdir, "latest")
