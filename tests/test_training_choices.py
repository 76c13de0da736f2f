"""A step against the official code's, averaged variables, a frozen backbone, balanced classes."""

import json
from functools import partial

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from conftest import CONFIGS, GOLDEN
from flax.traverse_util import flatten_dict
from test_golden_models import seeded
from test_train import batch, small, step_and_state

from deeplab_jax import checkpoint, importers, main, models, optim, runtime
from deeplab_jax import config as configuration
from deeplab_jax import train as training
from deeplab_jax.errors import DataError
from deeplab_jax.models import ASPP, LRASPP, BatchNorm, DeepLab, DeepLabV2, MultiScale
from deeplab_jax.models.fcn import FCNHead, PlainFCN
from deeplab_jax.models.layers import ConvBN, Logits

NORM = partial(BatchNorm, momentum=0.9, epsilon=1e-3)


def recording(optimizer):
    """The optimizer, with the gradients it was given last in its state."""

    def update(grads, state, params):
        updates, inner = optimizer.update(grads, state[0], params)
        return updates, (inner, grads)

    return optax.GradientTransformation(
        lambda params: (optimizer.init(params), jax.tree.map(jnp.zeros_like, params)), update
    )


def probes(leaf):
    flat = np.asarray(leaf).ravel()
    return flat[np.linspace(0, flat.size - 1, min(16, flat.size)).astype(int)]


def reference_step(fine_tune):
    """(run, golden, info): run(images) → ({name: gradient}, {name: variable after}, loss)."""
    golden = np.load(GOLDEN / "Ddm05_trainstep.npz")
    weights, _ = seeded("tf_Ddm05_mobilenetv2_dm05_os16_129")
    module = models.build(**importers.infer(weights))
    names = {}
    target = jax.eval_shape(lambda: training.init_variables(module, 0))
    variables = importers.load(weights, target, mapping=names)
    config = configuration.load(
        f"{CONFIGS}/v3plus.py:mobilenet_v2,voc",
        {
            "train.batch_size": 2,
            "train.fine_tune_batch_norm": fine_tune,
            "optim.last_layer_gradient_multiplier": 10.0,
        },
    )
    schedule = optim.schedule(config.optim, config.train.steps)
    optimizer = recording(optim.optimizer(variables["params"], schedule, config.optim))
    mesh = runtime.data_mesh()
    step = training.make_step(module, optimizer, schedule, config, mesh)
    decay = config.optim.weight_decay
    before = flatten_dict(variables["params"])

    def run(images):
        examples = {"image": images, "label": golden["labels"].astype(np.int32)}
        state = training.init_state(jax.device_put(variables), optimizer, config.train)
        state, figures = step(state, runtime.shard_batch(examples, mesh))
        gradients = {
            # The reference's are those of the loss with the decay's half squares in it.
            names["/".join(("params", *path))]: g
            + (decay * before[path] if "kernel" in path else 0)
            for path, g in flatten_dict(jax.device_get(state.opt_state[1])).items()
        }
        after = {
            names["/".join(path)]: leaf for path, leaf in flatten_dict(state.variables).items()
        }
        return gradients, after, float(figures["loss"])

    return run, golden, json.loads(str(golden["info"]))


def distances(ours, theirs, floor=0.0):
    """{name: the largest difference, relative to the reference's largest value there}"""
    assert ours.keys() == theirs.keys()
    return {
        name: np.abs(ours[name] - theirs[name]).max() / max(np.abs(theirs[name]).max(), floor)
        for name in ours
    }


def compared(run, images, golden, expected, names):
    """How far the loss, the norm of every gradient and every variable after the step are off."""
    gradients, after, loss = run(images)
    # Of a bias before another batch norm the gradient is 0, and what there is is rounding.
    norms = {name: np.linalg.norm(g) for name, g in gradients.items()}
    norms = distances(norms, expected["grad_norms"], floor=0.05)
    ours = {name: probes(after[name]) for name in names}
    assert ours.keys() == after.keys()
    ends = np.cumsum([len(ours[name]) for name in names])
    after = distances(ours, dict(zip(names, np.split(golden, ends[:-1]))))
    return abs(loss / expected["data_loss"] - 1), norms, after


def reference_images():
    return np.random.default_rng(0).integers(0, 256, (2, 65, 65, 3)).astype(np.float32)


def test_a_training_step_equals_the_reference(monkeypatch):
    monkeypatch.setattr("flax.linen.Dropout.__call__", lambda self, x: x)
    run, golden, info = reference_step(fine_tune=False)
    loss, norms, after = compared(
        run, reference_images(), golden["ft0/after1"], info["ft0"], info["after_names"]
    )
    assert loss < 1e-5
    assert max(norms.values()) < 1e-3
    assert max(after.values()) < 1e-3


def test_a_training_step_with_batch_norm_of_the_batch_equals_the_reference(monkeypatch):
    """Of two images, where rounding decides a ReLU behind the pooled features.

    In float64 a nudge of the images by 1e-6 moves the backbone's gradients by 9 %, from where
    ours are to the reference's. So the nearest of some nudged runs has to be near.
    """
    monkeypatch.setattr("flax.linen.Dropout.__call__", lambda self, x: x)
    run, golden, info = reference_step(fine_tune=True)
    found = []
    for seed in range(4):
        images = reference_images()
        nudge = 1 + 1e-6 * np.random.default_rng(seed).standard_normal(images.shape)
        loss, norms, after = compared(
            run,
            (images * nudge).astype(np.float32),
            golden["ft1/after1"],
            info["ft1"],
            info["after_names"],
        )
        assert loss < 1e-3
        assert max(off for name, off in after.items() if "moving" in name) < 1e-4
        norms, after = (list(offs.values()) for offs in (norms, after))
        found.append((np.median(norms), max(norms), np.median(after), max(after)))
    # On the other side of the ReLU 0.09, 0.15, 4e-5 and 0.25.
    np.testing.assert_array_less(min(found), (0.01, 0.06, 2e-5, 0.1))


# --- averages and a frozen backbone ---


class Backbone(nn.Module):
    """Two layers: quick to compile."""

    @nn.compact
    def __call__(self, images, train):
        x = ConvBN(4, NORM, kernel_size=3, stride=4, name="conv1")(images, train)
        y = ConvBN(8, NORM, kernel_size=3, stride=2, name="conv2")(x, train)
        return {"low_level_4": x, "features": y}


ASPP_OF_8 = partial(
    ASPP, (1,), 8, separable=False, depthwise_norm=True, image_pooling=True, norm=NORM, name="aspp"
)
OF_3 = partial(Logits, 3)
NETWORKS = {
    "deeplab": DeepLab(Backbone, ASPP_OF_8, None, (), 0.1, None, OF_3),
    "fcn": PlainFCN(Backbone, partial(FCNHead, NORM, OF_3)),
    "v2": MultiScale(DeepLabV2(Backbone, (1, 2), 3, OF_3), (0.5, 1.0), align_corners=True),
    "lraspp": LRASPP(Backbone, NORM, 8, 4, OF_3, None, (1, 1), align_corners=True),
}


@pytest.fixture(scope="module")
def frozen_run():
    """States on the host, before and after each of three steps; backbone frozen, averages kept."""
    config = small("", train__ema_decay=0.8, train__freeze_backbone=True)
    step, state, mesh = step_and_state(config, module=NETWORKS["deeplab"])
    states = [jax.device_get(state)]
    for _ in range(3):
        state, _ = step(state, runtime.shard_batch(batch(), mesh))
        states.append(jax.device_get(state))
    return states


def test_the_average_is_the_exponential_one(frozen_run):
    raw = [{"params": s.params, "batch_stats": s.batch_stats} for s in frozen_run]
    factors = [0.8**3, 0.2 * 0.8**2, 0.2 * 0.8, 0.2]
    expected = jax.tree.map(lambda *leaves: sum(f * x for f, x in zip(factors, leaves)), *raw)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        frozen_run[-1].average,
        expected,
    )
    assert frozen_run[-1].variables is frozen_run[-1].average


def test_a_frozen_backbone_stays_bit_for_bit_and_the_head_learns(frozen_run):
    first, last = frozen_run[0], frozen_run[-1]
    for variables in (last.average, {"params": last.params, "batch_stats": last.batch_stats}):
        for collection in ("params", "batch_stats"):
            old, new = getattr(first, collection), variables[collection]
            jax.tree.map(np.testing.assert_array_equal, old["backbone"], new["backbone"])
            for name in old.keys() - {"backbone"}:
                for a, b in zip(jax.tree.leaves(old[name]), jax.tree.leaves(new[name])):
                    assert (a != b).any()
    paths = jax.tree_util.tree_leaves_with_path(last.opt_state)
    assert not any("backbone" in jax.tree_util.keystr(path) for path, _ in paths)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_freeze_its_backbone(name):
    module = NETWORKS[name]
    variables = training.init_variables(module, 0)
    images = jax.random.normal(jax.random.key(0), (2, 33, 33, 3))

    @jax.jit
    def gradient(params, batch_stats):
        def loss(params):
            outputs, updated = module.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                freeze_backbone=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(outputs)), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    grads, batch_stats = gradient(variables["params"], variables["batch_stats"])
    backbone, statistics = (tree["backbone"] for tree in (grads, batch_stats))
    assert not any(g.any() for g in jax.tree.leaves(backbone))
    assert all(
        g.any() for name in grads.keys() - {"backbone"} for g in jax.tree.leaves(grads[name])
    )
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"]["backbone"])


@flax.struct.dataclass
class FormerState:
    """The state as checkpoints had it before there were averages."""

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: tuple


def test_checkpoints_from_before_the_averages_still_fit(tmp_path):
    params = {"backbone": {"kernel": jnp.arange(3.0)}, "logits": {"bias": jnp.ones(2)}}
    config = small("")
    optimizer = optim.optimizer(params, lambda step: 1.0, config.optim)
    stats = {"norm": {"mean": jnp.ones(2)}}
    former = FormerState(jnp.int32(3), params, stats, optimizer.init(params))
    handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(tmp_path / "checkpoints", item_handlers=handlers) as manager:
        state, position = ocp.args.StandardSave(former), ocp.args.JsonSave({"iterator": None})
        manager.save(3, args=ocp.args.Composite(state=state, position=position))
    variables = jax.tree.map(jnp.zeros_like, {"params": params, "batch_stats": stats})
    like = training.init_state(variables, optimizer, config.train)
    with checkpoint.Checkpoints(tmp_path, keep=2) as kept:
        state, _ = kept.restore(3, like)
    assert int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(
        np.testing.assert_array_equal, checkpoint.read_variables(tmp_path)[0]["params"], params
    )


# --- the recipe in a real run ---


def test_class_weights_are_of_the_images_and_other_copies_are_noticed(
    data_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(models, "build", lambda **_: NETWORKS["deeplab"])
    recipe = {
        "train__steps": 2,
        "train__accumulation_steps": 2,
        "train__fine_tune_batch_norm": False,
        "loss__class_weights": "median_frequency",
        "loss__top_k_percent_pixels": 0.5,
        "loss__hard_example_mining_step": 2,
        "loss__label_smoothing": 0.1,
        "optim__name": "adamw",
        "optim__schedule": "cosine",
        "optim__learning_rate": 1e-3,
        "optim__clip_norm": 1.0,
        "data__bootstrap_classes": (1,),
    }
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        main.run(small(data_folder, **recipe), "train", tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    weights = written["loss"]["class_weights"]
    assert len(weights) == 3
    np.testing.assert_allclose(weights, 1, atol=0.1)  # the masks are drawn evenly
    with pytest.raises(DataError, match="trained with training images 8, now it is 12"):
        main.run(small(data_folder, **recipe, data__bootstrap_copies=3), "train", tmp_path)
