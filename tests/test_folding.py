"""Folded batch norm answers as the unfolded one, in every network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from test_models import randomised, shapes

from deeplab_jax import models
from deeplab_jax.models.folding import fold_batch_norm
from deeplab_jax.models.layers import ConvBN
from deeplab_jax.predict import freeze, label_maps

SMALL = {"num_classes": 5, "aspp_channels": 32, "atrous_rates": (1, 2)}
MOBILE = {"name": "v3plus", "backbone": "mobilenet_v2", "width_multiplier": 0.5} | SMALL
CASES = {
    "v3plus": MOBILE,
    "v3 dense": {"name": "v3", "backbone": "resnet_50", "separable": False} | SMALL,
    "v3 half normed": MOBILE | {"name": "v3", "depthwise_norm": False, "input_scales": (0.5, 1.0)},
    "lraspp": {"name": "v3plus", "backbone": "mobilenet_v3_small_seg", "context": "lraspp"} | SMALL,
    "dpc": MOBILE | {"context": "dpc"},
    "v2": MOBILE | {"name": "v2", "batch_norm_epsilon": 0.1},
    "fcn": MOBILE | {"name": "fcn"},
    "xception": {"name": "v3plus", "backbone": "xception_41"} | SMALL,
}
SLOW = ("v3 half normed", "dpc", "xception")
OPTIONS = {"normalization": "zero_mean", "align_corners": True}


def logits(module, variables, images):
    outputs = jax.jit(module.apply)(variables, images)
    return np.asarray(outputs["logits"] if isinstance(outputs, dict) else outputs)


def norms(variables):
    """{path in params: its leaves' names} of all batch norms."""
    found = {}
    for path in flatten_dict(variables["params"]):
        if path[-2] == "norm":
            found.setdefault(path[:-1], set()).add(path[-1])
    return found


@pytest.fixture(scope="module")
def mobile():
    """(module, variables) whose classes all win somewhere."""
    module = models.build(**MOBILE)
    variables = randomised(shapes(module))
    images = np.random.default_rng(0).standard_normal((1, 65, 97, 3)).astype(np.float32)
    variables["params"]["logits"]["bias"] -= logits(module, variables, images).mean((0, 1, 2))
    return module, variables


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES]
)
def test_the_same_logits_with_fewer_variables(case, fewest_layers):
    module = models.build(**CASES[case])
    variables = randomised(shapes(module))
    images = np.random.default_rng(1).standard_normal((1, 65, 97, 3)).astype(np.float32)
    folded = fold_batch_norm(module, variables)
    assert "batch_stats" not in folded
    assert set(map(frozenset, norms(folded).values())) == {frozenset({"bias"})}
    assert norms(folded).keys() == norms(variables).keys()
    leaves = len(jax.tree.leaves(variables)) - len(jax.tree.leaves(folded))
    assert leaves == 3 * len(norms(variables))
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype("float32")}

    with jax.enable_x64(True):
        module = models.build(**CASES[case], dtype="float64")
        variables, images = jax.tree.map(lambda x: x.astype(np.float64), (variables, images))
        folded = fold_batch_norm(module, variables)
        ours, theirs = logits(module, folded, images), logits(module, variables, images)
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * theirs.std())
        assert theirs.std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("backbone", models.BACKBONES)
def test_every_norm_of_every_backbone_folds(backbone, fewest_layers):
    if backbone in ("alexnet", "googlenet", "googlenet_5x5"):  # of fcn alone
        module, stride = build_fcn(backbone), 32
    else:
        module, stride = models.build("v3plus", backbone, 5), 4
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes(module))
    folded = fold_batch_norm(module, variables)
    assert "batch_stats" not in folded
    images, side = jnp.zeros((1, 65, 65, 3)), -(-65 // stride)
    assert jax.eval_shape(module.apply, folded, images).shape == (1, side, side, 5)


def build_fcn(backbone):
    keywords = {"output_stride": 32, "decoder_output_stride": None, "fc_channels": 8}
    return models.build("fcn", backbone, 5, **keywords)


def test_a_norm_behind_a_bias_folds():
    module = models.build("v1", "vgg16_bn", 5, output_stride=8, fc_channels=8)
    variables = randomised(shapes(module))
    images = np.random.default_rng(1).standard_normal((1, 65, 65, 3)).astype(np.float32)
    expected = jax.jit(module.apply)(variables, images)
    folded = jax.jit(module.apply)(fold_batch_norm(module, variables), images)
    np.testing.assert_allclose(folded, expected, atol=1e-4 * np.abs(expected).max())


def test_folding_twice_is_folding_once(mobile):
    module, variables = mobile
    once = fold_batch_norm(module, variables)
    twice = fold_batch_norm(module, once)
    jax.tree.map(np.testing.assert_array_equal, once, twice)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_variables_stay_as_they_were(dtype, mobile):
    module, variables = mobile
    variables = jax.tree.map(lambda x: np.array(x, dtype), variables)
    kept = jax.tree.map(np.copy, variables)
    with jax.enable_x64(dtype is np.float64):
        folded = fold_batch_norm(module, variables)
        assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {np.dtype(dtype)}
    jax.tree.map(np.testing.assert_array_equal, variables, kept)


def test_a_norm_behind_no_convolution_stays():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            norm = models.build(**MOBILE).backbone.keywords["norm"]
            x = norm(name="first")(x, train)
            return norm(name="last")(ConvBN(4, norm, name="conv")(x, train), train)

    module = Network()
    variables = randomised(shapes(module))
    folded = fold_batch_norm(module, variables)
    assert set(folded["batch_stats"]) == {"first", "last"}
    assert set(folded["params"]["last"]) == {"scale", "bias"}
    assert set(folded["params"]["conv"]["norm"]) == {"bias"}
    images = np.random.default_rng(1).standard_normal((1, 9, 9, 3)).astype(np.float32)
    theirs = logits(module, variables, images)
    np.testing.assert_allclose(logits(module, folded, images), theirs, atol=1e-5)


def test_sharding_is_kept(mobile):
    module, variables = mobile
    mesh = jax.sharding.Mesh(jax.devices(), "data")
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    folded = fold_batch_norm(module, jax.device_put(variables, everywhere))
    assert {leaf.sharding for leaf in jax.tree.leaves(folded)} == {everywhere}


def test_folded_variables_do_not_train(mobile):
    module, variables = mobile
    folded = fold_batch_norm(module, variables)

    def apply(**mode):
        rngs = {"dropout": jax.random.key(0)}
        images = jnp.zeros((2, 33, 33, 3))
        return jax.eval_shape(lambda v: module.apply(v, images, rngs=rngs, **mode), folded)

    with pytest.raises(ValueError, match="batch norm backbone/stem/norm is folded"):
        apply(train=True)
    assert apply(train=True, train_batch_norm=False).shape == (2, 9, 9, 5)


def test_bfloat16_agrees_where_its_rounding_lets_it(mobile):
    module, variables = mobile
    half = models.build(**MOBILE, dtype="bfloat16")
    images = np.random.default_rng(1).standard_normal((1, 65, 97, 3)).astype(np.float32)
    folded = fold_batch_norm(half, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype("float32")}
    exact = logits(module, variables, images)
    ours, theirs = (logits(half, v, images) for v in (folded, variables))
    error = np.abs(theirs - exact).mean()
    assert np.abs(ours - exact).mean() < 1.2 * error
    # Random weights leave many pixels undecided; what rounding says there is no answer.
    *_, second, best = np.sort(exact, axis=-1).transpose(3, 0, 1, 2)
    decided = best - second > 4 * error
    assert decided.mean() > 0.5
    assert (ours.argmax(-1) == theirs.argmax(-1))[decided].mean() >= 0.98


def test_frozen_and_folded_give_the_same_label_maps(mobile):
    module, variables = mobile
    images = np.random.default_rng(1).integers(0, 256, (2, 65, 97, 3)).astype(np.float32)
    expected = logits(module, variables, images)
    folded = logits(module, fold_batch_norm(module, variables), images)
    np.testing.assert_allclose(folded, expected, rtol=0, atol=1e-4 * expected.std())
    theirs = label_maps(module, variables, images, **OPTIONS)
    ours = freeze(module, variables, **OPTIONS)(images)
    assert ours.dtype == theirs.dtype
    assert (ours == theirs).mean() >= 0.999
    assert len(np.unique(theirs)) > 1

    options = OPTIONS | {"eval_scales": (0.5,), "add_flipped_images": True}
    theirs = label_maps(module, variables, images, **options)
    ours = label_maps(module, fold_batch_norm(module, variables), images, **options)
    assert (ours == theirs).mean() >= 0.999
