"""B1 to B5: what a resumed run shares with one that was never stopped, and what it refuses."""

import command
import numpy as np
import pytest
from conftest import write_folder
from PIL import Image


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "data")


def trains(root, workdir, environment=(), **changes):
    environment = command.ENVIRONMENT | dict(environment)
    done = command.run(command.command(root, workdir, **changes), env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """A folder with ten/, which was trained for 10 steps, and twenty/, for 20 without a stop."""
    folder = tmp_path_factory.mktemp("runs")
    trains(root, folder / "ten", train__steps=10, train__ema_decay=0.9)
    trains(root, folder / "twenty", train__steps=20, train__ema_decay=0.9)
    return folder


@pytest.mark.fault("B1")
@pytest.mark.parametrize("changes", [{}, {"data__num_threads": 1}], ids=["alike", "one thread"])
def test_ten_steps_and_ten_more_are_twenty(root, runs, tmp_path, changes):
    workdir = command.copied(runs / "ten", tmp_path / "run")
    trains(root, workdir, train__steps=20, train__ema_decay=0.9, **changes)
    command.assert_same(workdir, runs / "twenty", 20)
    state = command.saved(workdir, 20)["state"]
    assert {"params", "batch_stats", "opt_state", "average", "step"} <= state.keys()
    by_step = {line["step"]: line for line in command.lines(workdir) if "loss" in line}
    for line in command.lines(runs / "twenty"):
        if "loss" in line:
            assert by_step[line["step"]]["loss"] == line["loss"]


@pytest.mark.fault("B2")
def test_worker_processes_in_place_of_threads_see_the_same_stream(root, runs, tmp_path):
    workdir = command.copied(runs / "ten", tmp_path / "run")
    trains(root, workdir, train__steps=20, train__ema_decay=0.9, data__num_workers=2)
    command.assert_same(workdir, runs / "twenty", 20)


@pytest.mark.fault("B3")
def test_two_devices_go_on_where_one_stopped(root, tmp_path):
    exactly = {"JAX_ENABLE_X64": "1"}
    changes = {"model__dtype": "float64", "log_every": 1, "optim__learning_rate": 0.002}
    for name in ("run", "whole"):
        steps = {"run": 10, "whole": 20}[name]
        trains(root, tmp_path / name, exactly, train__steps=steps, **changes)
    two = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
    said = trains(root, tmp_path / "run", exactly | {"XLA_FLAGS": two}, train__steps=20, **changes)
    assert "2 cpu device(s)" in said
    found, expected = (
        {line["step"]: line["loss"] for line in command.lines(tmp_path / name) if "loss" in line}
        for name in ("run", "whole")
    )
    assert found.keys() == expected.keys() == set(range(1, 21))
    # Of another order of the batches' images these would differ in the second digit.
    np.testing.assert_allclose(*(list(losses.values()) for losses in (found, expected)), rtol=1e-5)
    position = command.saved(tmp_path / "run", 20)["position"]
    assert position == command.saved(tmp_path / "whole", 20)["position"]


@pytest.mark.fault("B4")
def test_other_files_than_before_are_refused_until_allowed(runs, tmp_path):
    root = write_folder(tmp_path / "data", count=5)
    workdir = command.copied(runs / "ten", tmp_path / "run")
    before = command.contents(workdir)
    for _ in range(2):  # a file more; then as many as before, one of them another
        arguments = command.command(root, workdir, train__steps=20, train__ema_decay=0.9)
        done = command.run(arguments)
        assert done.returncode == 3
        assert "go on regardless with --config.data.allow_change=True" in done.stderr
        assert command.contents(workdir) == before
        for path in (root / "images" / "scene 4.jpg", root / "masks" / "scene 4.png"):
            path.unlink(missing_ok=True)
        Image.new("RGB", (50, 40)).save(root / "images" / "scene 0.jpg")
    done = command.run([*arguments, "--config.data.allow_change=True"])
    assert done.returncode == 0, done.stderr
    assert "warning: " in done.stdout
    assert "data fingerprint" in done.stdout


@pytest.mark.fault("B5")
def test_the_seed_makes_the_run(root, runs, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        trains(root, tmp_path / name, train__steps=10, train__ema_decay=0.9, seed=seed)
    command.assert_same(tmp_path / "same", runs / "ten", 10)
    with pytest.raises(AssertionError):
        command.assert_same(tmp_path / "other", runs / "ten", 10)
