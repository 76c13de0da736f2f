"""D1 to D5: numbers that leave the finite ones, and batches that threaten to."""

import re

import command
import jax
import numpy as np
import pytest
from conftest import write_folder
from test_train import batch, small, step_and_state

from deeplab_jax import checkpoint, evaluate, loop, main, networks, processes, runtime
from deeplab_jax import train as training
from deeplab_jax.errors import ConfigError, NumericsError


class Poisoned:
    """Batches as those of `train_iterator`; those of some steps hold a NaN.

    Training reads images as bytes, which cannot be one: this is what a loader of somebody's own
    would hand over.
    """

    def __init__(self, steps):
        self.steps, self.step = steps, 0

    def __next__(self):
        self.step += 1
        made = batch(seed=self.step)
        if self.step in self.steps:
            made["image"][0, 5, 5, 0] = np.nan
        return made

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


def train(config, workdir, poisoned):
    mesh = runtime.data_mesh()
    module = networks.build(config)[0]
    return loop.train(
        module,
        training.init_variables(module, 0),
        Poisoned(poisoned),
        config,
        workdir,
        first=checkpoint.recover(workdir),
        mesh=mesh,
        preemption=processes.Preemption(),
        evaluate=evaluate.evaluate,
        position_check={},
    )


@pytest.mark.fault("D1")
def test_a_nan_in_a_batch_stops_the_run_and_keeps_the_batch(tmp_path):
    config = small(tmp_path, log_every=100, train__steps=100, train__checkpoint_every=5)
    with pytest.raises(NumericsError, match="step 7: loss nan, gradient norm nan") as caught:
        train(config, tmp_path, {7})
    assert caught.value.exit_code == 5
    kept = tmp_path / "nonfinite" / "step_7.npz"
    assert str(kept) in str(caught.value)
    assert "The checkpoint of step 5 is kept" in str(caught.value)
    with np.load(kept) as dumped:
        assert np.argwhere(np.isnan(dumped["image"])).tolist() == [[0, 5, 5, 0]]
        np.testing.assert_array_equal(dumped["label"], batch(seed=7)["label"])
    assert checkpoint.sound_step(tmp_path) == 5
    variables, _ = checkpoint.read_variables(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    config.train.steps = 10
    train(config, tmp_path, ())  # and goes on from there
    assert checkpoint.sound_step(tmp_path) == 10


@pytest.mark.fault("D2")
def test_a_rate_that_explodes_ends_with_5_and_the_last_good_checkpoint(tmp_path):
    root, workdir = write_folder(tmp_path / "data"), tmp_path / "run"
    assert command.run(command.command(root, workdir, train__steps=5)).returncode == 0
    arguments = command.command(root, workdir, train__steps=100, optim__learning_rate=1e10)
    done = command.run([*arguments, "--config.train.checkpoint_every=1"])
    assert done.returncode == 5, done.stderr
    step = int(re.search(r"step (\d+): loss", done.stderr)[1])
    assert f"Its batch is in {workdir}/nonfinite/step_{step}.npz" in done.stderr
    assert "Try a lower optim.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert (workdir / "nonfinite" / f"step_{step}.npz").is_file()
    variables, kept = checkpoint.read_variables(workdir)
    assert 5 <= kept < step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.mark.fault("D3")
def test_skipped_steps_change_nothing_but_the_step(tmp_path):
    config = small(tmp_path, train__on_nan="skip", train__steps=100, train__ema_decay=0.9)
    step, state, mesh = step_and_state(config)
    sent = Poisoned({2})
    state, figures = step(state, runtime.shard_batch(next(sent), mesh))
    assert figures["sound"]
    before = jax.device_get(state)
    state, figures = step(state, runtime.shard_batch(next(sent), mesh))
    assert not figures["sound"]
    jax.tree.map(np.testing.assert_array_equal, before.replace(step=2), jax.device_get(state))
    state, figures = step(state, runtime.shard_batch(next(sent), mesh))
    assert figures["sound"]
    assert (jax.tree.leaves(before.params)[0] != jax.tree.leaves(state.params)[0]).any()


@pytest.mark.fault("D3")
def test_so_many_are_skipped_and_the_next_stops(tmp_path, capsys):
    changes = {"train__on_nan": "skip", "train__max_skipped": 3, "log_every": 1}
    config = small(tmp_path, train__steps=12, train__checkpoint_every=6, **changes)
    bad = {2, 5, 6}
    train(config, tmp_path / "three", bad)
    said = capsys.readouterr().out
    assert said.count("; skipped (") == 3
    assert "step 6: loss nan, gradient norm nan; skipped (3 of at most 3)" in said
    assert checkpoint.sound_step(tmp_path / "three") == 12

    with pytest.raises(NumericsError, match=r"step 9: loss nan.*after 3 skipped steps"):
        train(config, tmp_path / "four", bad | {9})
    # Those before a resumption count.
    assert checkpoint.sound_step(tmp_path / "four") == 6
    with pytest.raises(NumericsError, match=r"step 9: loss nan.*after 3 skipped steps"):
        train(config, tmp_path / "four", {9})


@pytest.mark.fault("D4")
def test_batch_norm_of_one_value_is_refused_before_training(tmp_path):
    root = write_folder(tmp_path / "data")
    for changes in ({"train__batch_size": 1}, {"train__accumulation_steps": 4}):
        done = command.run(command.command(root, tmp_path / "run", **changes))
        assert done.returncode == 2, done.stderr
        assert "batch norm of the pooled features would see one value a channel" in done.stderr
        assert "compiling" not in done.stdout
    with pytest.raises(ConfigError, match="would see one value a channel"):
        main.run(small(root, train__accumulation_steps=4), "train", tmp_path / "run")


@pytest.mark.fault("D5")
@pytest.mark.parametrize("value", [0.0, 127.5, 255.0])
def test_images_of_one_colour_stay_finite(tmp_path, value):
    step, state, mesh = step_and_state(small(tmp_path))
    same = batch() | {"image": np.full((4, 49, 49, 3), value, np.float32)}
    for _ in range(3):
        state, figures = step(state, runtime.shard_batch(same, mesh))
        assert figures["sound"]
        assert np.isfinite(figures["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))
