import json
import shutil
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS
from PIL import Image

from deeplab_jax import checkpoint, main, models, runtime
from deeplab_jax import config as configuration
from deeplab_jax import train as training
from deeplab_jax.errors import ConfigError, DataError, NumericsError, Preempted, WeightsError

SMALL = {
    "model.backbone": "experiments.own_backbone:ConvNet",  # five layers: quick to compile
    "model.aspp_channels": 16,
    "model.decoder_channels": 16,
    "model.num_classes": 3,
    "model.atrous_rates": (2,),
    "model.decoder_convs": 1,
    "data.crop_size": (49, 49),
    "eval.crop_size": (49, 65),
    "eval.batch_size": 2,
    "eval.panels": 2,
    "eval.trimap_widths": (3,),
    "train.batch_size": 4,
    "train.steps": 20,
    "train.checkpoint_every": 10,
    "train.eval_every": 1000,
    "log_every": 5,
    "optim.learning_rate": 0.05,
    "data.train_split": "all",
    "eval.split": "all",
}


def small(root, **changes):
    return configuration.load(
        f"{CONFIGS}/v3plus.py:mobilenet_v2,folder",
        SMALL | {"data.root": str(root)} | {k.replace("__", "."): v for k, v in changes.items()},
    )


def step_and_state(config, mesh=None, module=None):
    module = module or models.build(**config.model)
    mesh = mesh or runtime.data_mesh()
    variables = training.init_variables(module, 0)
    return *training.begin(module, variables, config, mesh), mesh


def batch(size=4, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, (size, 7, 7)).repeat(7, 1).repeat(7, 2)
    image = np.stack([label * 80, 255 - label * 80, label * 40], axis=-1)
    label[:, :3] = 255
    return {"image": image.astype(np.float32), "label": label.astype(np.int32)}


def test_the_loss_falls_on_the_same_few_images(tmp_path):
    step, state, mesh = step_and_state(small(tmp_path, optim__learning_rate=0.3, train__steps=1000))
    assert mesh.size == 2
    losses = []
    for _ in range(25):
        state, figures = step(state, runtime.shard_batch(batch(), mesh))
        losses.append(float(figures["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 25


def test_accumulated_parts_equal_the_whole_batch(tmp_path, monkeypatch):
    # Dropout draws by shape, so parts draw differently: leave it out of the comparison.
    monkeypatch.setattr("flax.linen.Dropout.__call__", lambda self, x: x)
    after = []
    for parts in (1, 2):
        config = small(tmp_path, train__accumulation_steps=parts, train__fine_tune_batch_norm=False)
        step, state, mesh = step_and_state(config)
        state, figures = step(state, runtime.shard_batch(batch(), mesh))
        after.append((state.params, figures))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *after)


def test_two_devices_take_the_step_of_one(tmp_path):
    one = jax.make_mesh(
        (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
    )
    after = []
    for mesh in (one, runtime.data_mesh()):
        step, state, mesh = step_and_state(small(tmp_path), mesh)
        state, figures = step(state, runtime.shard_batch(batch(), mesh))
        after.append((jax.device_get(state.batch_stats), float(figures["loss"])))
    np.testing.assert_allclose(after[0][1], after[1][1], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), after[0][0], after[1][0])


def final_state(workdir, step):
    path = (workdir / checkpoint.FOLDER / str(step) / "state").absolute()
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path)


def test_a_run_that_stopped_goes_on_bit_for_bit(data_folder, tmp_path, monkeypatch):
    config = small(data_folder, train__ema_decay=0.9)
    trained = main.run(config, "train", tmp_path / "whole")

    def stopped(stops, workdir, error):
        def advance(self, count=1):
            self.done += count
            if self.what == "train" and self.done in stops:
                stops[self.done]()

        with monkeypatch.context() as patch:
            patch.setattr(runtime.Progress, "advance", advance)
            with pytest.raises(error) as caught:
                main.run(config, "train", workdir)
        return str(caught.value), checkpoint.latest_step(workdir)

    def raise_interrupt():
        raise KeyboardInterrupt

    halves = tmp_path / "halves"
    former = signal.getsignal(signal.SIGTERM)
    terminate = partial(signal.raise_signal, signal.SIGTERM)
    told, step = stopped({7: terminate}, halves, Preempted)
    assert f"step 7 of 20 is saved in {halves}" in told
    assert step == 7
    assert signal.getsignal(signal.SIGTERM) is former
    assert stopped({13: raise_interrupt}, halves, KeyboardInterrupt)[1] == 10
    main.run(config, "train", halves)

    whole, halves = (final_state(tmp_path / name, 20) for name in ("whole", "halves"))
    jax.tree.map(np.testing.assert_array_equal, whole, halves)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "halves")
    ]
    assert [line["step"] for line in lines[1]] == [5, 7, 10, 15, 20, 20]
    losses = [{line["step"]: line["loss"] for line in of if "loss" in line} for of in lines]
    assert all(losses[0][step] == losses[1][step] for step in (5, 15, 20))

    # What is evaluated and handed on is the average, which the checkpoint holds beside the last.
    found, _ = checkpoint.read_variables(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, found, whole["average"])
    bias = whole["params"]["logits"]["bias"]
    assert (bias != found["params"]["logits"]["bias"]).any()
    np.testing.assert_equal(main.run(config, "eval", tmp_path / "whole"), trained)
    with pytest.raises(WeightsError, match=r"train\.ema_decay"):
        main.run(small(data_folder), "train", tmp_path / "whole")


def test_training_that_explodes_stops_with_the_last_checkpoint(data_folder, tmp_path):
    config = small(data_folder, optim__learning_rate=1e12, log_every=1)
    with pytest.raises(NumericsError, match="Try a lower"):
        main.run(config, "train", tmp_path)
    assert checkpoint.latest_step(tmp_path) is None


def test_a_checkpoint_of_another_model_or_stream_is_refused(data_folder, tmp_path):
    main.run(small(data_folder, train__steps=2), "train", tmp_path)
    with pytest.raises(WeightsError, match="another model"):
        main.run(small(data_folder, model__aspp_channels=24), "train", tmp_path)
    with pytest.raises(WeightsError, match="another model"):
        main.run(small(data_folder, model__aspp_channels=24), "eval", tmp_path)
    with pytest.raises(DataError, match=r"trained with train\.batch_size 4, now it is 8"):
        main.run(small(data_folder, train__batch_size=8), "train", tmp_path)


def test_changed_data_are_refused_or_confirmed(data_folder, tmp_path, capsys):
    quick = {"train__steps": 1, "eval__panels": 0}
    main.run(small(data_folder, **quick), "train", tmp_path)
    image = data_folder / "images" / "scene 0.jpg"
    Image.new("RGB", (50, 40)).save(image)  # as many images as before
    described = (tmp_path / "config.json").read_text()
    with pytest.raises(DataError, match=r"data fingerprint \w+, now it is .*allow_change=True"):
        main.run(small(data_folder, **quick | {"train__steps": 2}), "train", tmp_path)
    assert (tmp_path / "config.json").read_text() == described
    capsys.readouterr()
    main.run(
        small(data_folder, **quick | {"train__steps": 2}, data__allow_change=True),
        "train",
        tmp_path,
    )
    assert "warning: " in capsys.readouterr().out
    assert checkpoint.latest_step(tmp_path) == 2


def test_impossible_batches_are_refused_before_compiling(data_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.batch_size=3 does not divide over 2 devices"):
        main.run(small(data_folder, train__batch_size=3), "train", tmp_path)
    with pytest.raises(ConfigError, match="would see one value a channel"):
        main.run(small(data_folder, train__accumulation_steps=4), "train", tmp_path)
    with pytest.raises(ConfigError, match=r"does not split into train\.accumulation_steps=3"):
        main.run(small(data_folder, train__accumulation_steps=3), "train", tmp_path)
    with pytest.raises(ConfigError, match=r"batch_norm_groups=3: 4 images at a time do not fall"):
        main.run(small(data_folder, model__batch_norm_groups=3), "train", tmp_path)
    with pytest.raises(
        ConfigError, match="in 4 parts: batch norm of the pooled features would see"
    ):
        main.run(small(data_folder, model__batch_norm_groups=4), "train", tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_opening_a_workdir_to_train_removes_what_a_kill_left_half_written(tmp_path):
    folder = tmp_path / checkpoint.FOLDER
    with checkpoint.Checkpoints(tmp_path, keep=2) as kept:
        kept.save(3, {"x": jnp.arange(4.0)}, {"iterator": None})
    half_written = folder / "5.orbax-checkpoint-tmp"
    shutil.copytree(folder / "3", half_written)
    with checkpoint.Checkpoints(tmp_path, keep=2) as kept:
        assert not half_written.exists()  # at once, not by a thread that may outlive the run
        assert kept.newest == 3
