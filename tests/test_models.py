import functools
import inspect

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import models

MOBILE = {"name": "v3plus", "backbone": "mobilenet_v2", "num_classes": 21}
# Trainable parameters of the official graphs (its own variable lists).
PARAMETERS = {
    ("v3plus", "xception_65", "auto", 1.0): 41_055_413,
    ("v3", "mobilenet_v2", None, 1.0): 2_113_557,
    ("v3", "mobilenet_v2", None, 0.5): 697_013,
}
STATISTICS = {41_055_413: 202_800, 2_113_557: 33_088, 697_013: 17_312}


def shapes(module, size=(65, 65), channels=3):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *size, channels))))


def initialised(module, images):
    return jax.jit(module.init)(jax.random.key(1), images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("case", PARAMETERS, ids=str)
def test_parameters_equal_the_reference(case):
    name, backbone, rates, width = case
    module = models.build(name, backbone, 21, atrous_rates=rates, width_multiplier=width)
    variables = shapes(module)
    assert count(variables["params"]) == PARAMETERS[case]
    assert count(variables["batch_stats"]) == STATISTICS[PARAMETERS[case]]


def test_every_backbone_builds():
    def network(backbone):
        if backbone in ("alexnet", "googlenet", "googlenet_5x5"):  # no atrous form
            return models.build("fcn", backbone, 21, output_stride=32, decoder_output_stride=None)
        return models.build("v3plus", backbone, 21)

    sizes = {b: count(shapes(network(b))["params"]) for b in models.BACKBONES}
    # The classifiers' trunks: 25.6 and 44.5 million less the classifier, in every shape.
    heads = sizes["resnet_101"] - sizes["resnet_50"]
    for shape in ("_beta", "_slim", "_caffe"):
        assert sizes[f"resnet_101{shape}"] - sizes[f"resnet_50{shape}"] == heads
    assert heads == 42_500_160 - 23_508_032
    assert sizes["xception_41"] < sizes["xception_65"] < sizes["xception_71"]
    assert set(sizes) == set(models.BACKBONES)


def randomised(variables, seed=0):
    """Every leaf random and the norms' scales near one, so that each layer matters."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if name in ("scale", "var"):
            return jnp.asarray(1 + 0.1 * np.abs(noise))
        if name in ("bias", "mean"):
            return jnp.asarray(0.1 * noise)
        return jnp.asarray(noise / np.sqrt(np.prod(leaf.shape[:-1])))

    return jax.tree_util.tree_map_with_path(draw, variables)


def features(module, variables, images):
    """The backbone's features, as the module itself computes them."""
    _, captured = jax.jit(
        lambda variables, images: module.apply(
            variables,
            images,
            capture_intermediates=lambda m, _: m.name == "backbone",
            mutable=["intermediates"],
        )
    )(variables, images)
    return captured["intermediates"]["backbone"]["__call__"][0]["features"]


@pytest.mark.parametrize(
    ("backbone", "padding", "size"),
    [
        ("mobilenet_v2", "same", (33, 97)),  # TensorFlow's SAME keeps the grid at 32 k + 1 alone
        ("mobilenet_v2", "fixed", (81, 50)),
        ("resnet_50_beta", "same", (65, 43)),
        pytest.param("resnet_50", "same", (81, 50), marks=pytest.mark.slow),
        pytest.param("xception_41", "same", (65, 43), marks=pytest.mark.slow),
        pytest.param("xception_65", "same", (33, 65), marks=pytest.mark.slow),
    ],
)
def test_same_variables_at_stride_8_and_16_are_the_same_features(
    backbone, padding, size, fewest_layers
):
    """[V3] Sec. 3.1: removing strides and adding rates only makes the features denser."""
    at = {s: models.build("v3", backbone, 5, output_stride=s, padding=padding) for s in (8, 16, 32)}
    variables = randomised(shapes(at[16], size))
    images = jax.random.normal(jax.random.key(1), (1, *size, 3))
    dense = features(at[8], variables, images)
    for stride in (16, 32):
        coarse = features(at[stride], variables, images)
        step = stride // 8
        scale = jnp.abs(coarse).max()
        np.testing.assert_allclose(dense[:, ::step, ::step] / scale, coarse / scale, atol=1e-5)
    assert dense.shape[1:3] == tuple((n - 1) // 8 + 1 for n in size)


@pytest.mark.parametrize(
    ("stride", "size"),
    [
        (8, (64, 96)),
        (8, (17, 129)),
        (16, (33, 50)),
        (16, (64, 96)),
        (32, (97, 65)),
        (32, (17, 129)),
    ],
)
def test_any_size_and_stride_gives_logits_at_the_heads_stride(size, stride):
    module = models.build(**MOBILE, width_multiplier=0.5, output_stride=stride, atrous_rates=(1, 2))
    logits = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((2, *size, 3)))[0]
    )
    assert logits.shape == (2, *(-(-n // 4) for n in size), 21)
    assert logits.dtype == jnp.float32


def test_v3_and_v3plus_without_decoder_are_one_graph():
    v3 = shapes(models.build("v3", "mobilenet_v2", 5))
    plain = shapes(models.build("v3plus", "mobilenet_v2", 5, decoder_output_stride=None))
    assert jax.tree.structure(v3) == jax.tree.structure(plain)
    assert "decoder" not in v3["params"]


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_input_channels(channels):
    variables = shapes(models.build(**MOBILE), channels=channels)
    assert variables["params"]["backbone"]["stem"]["kernel"].shape[2] == channels


def test_frozen_batch_norm_changes_no_statistic_and_training_does():
    module = models.build(**MOBILE, width_multiplier=0.5)
    images = jax.random.normal(jax.random.key(0), (2, 33, 33, 3))
    variables = initialised(module, images)

    @functools.partial(jax.jit, static_argnums=0)
    def updated(train_batch_norm):
        return module.apply(
            variables,
            images,
            train=True,
            train_batch_norm=train_batch_norm,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )[1]["batch_stats"]

    frozen = updated(False)
    jax.tree.map(np.testing.assert_array_equal, frozen, variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), updated(None), variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_batch_norm_in_training_equals_the_reference():
    from conftest import GOLDEN

    golden = np.load(GOLDEN / "fn_batchnorm_train.npz")
    norm = models.BatchNorm(momentum=0.9, epsilon=1e-3)
    params = {"scale": golden["gamma"], "bias": golden["beta"]}
    stats = {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}
    y, updated = norm.apply(
        {"params": params, "batch_stats": stats}, golden["x"], True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y, golden["y"], atol=1e-5)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], golden["moving_mean"], atol=1e-6)
    np.testing.assert_allclose(stats["var"], golden["moving_variance"], atol=1e-6)


def test_batch_norm_by_groups_is_that_of_each_part_of_the_batch():
    x = jax.random.normal(jax.random.key(0), (4, 5, 7, 3)) * jnp.arange(1.0, 5)[:, None, None, None]
    whole, halves = (models.BatchNorm(momentum=0.9, epsilon=1e-3, groups=n) for n in (1, 2))
    variables = whole.init(jax.random.key(1), x, False)

    def forward(x, norm):
        return norm.apply(variables, x, True, mutable=["batch_stats"])

    (y, updated), parts = forward(x, halves), [forward(part, whole) for part in (x[:2], x[2:])]
    np.testing.assert_allclose(y, jnp.concatenate([y for y, _ in parts]), atol=1e-6)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(stats for _, stats in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, mean)
    assert abs(y - forward(x, whole)[0]).max() > 0.1

    def slope(x, norm):
        return jax.grad(lambda x: jnp.sum(jnp.sin(forward(x, norm)[0])))(x)

    expected = jnp.concatenate([slope(part, whole) for part in (x[:2], x[2:])])
    np.testing.assert_allclose(slope(x, halves), expected, atol=1e-5)


def test_a_single_value_per_channel_is_refused_in_training():
    module = models.build(**MOBILE, width_multiplier=0.5)
    images = jnp.zeros((1, 33, 33, 3))
    variables = shapes(module)
    with pytest.raises(ValueError, match="image_pooling/norm would see a single value"):
        jax.eval_shape(
            lambda variables: module.apply(
                variables,
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            ),
            variables,
        )


def test_bfloat16_keeps_parameters_and_statistics_float32():
    module = models.build(**MOBILE, width_multiplier=0.5, dtype="bfloat16")
    images = jax.random.normal(jax.random.key(0), (2, 65, 65, 3))
    variables = randomised(initialised(module, images))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    half = jax.jit(module.apply)(variables, images)
    full = jax.jit(models.build(**MOBILE, width_multiplier=0.5).apply)(variables, images)
    assert half.dtype == jnp.float32
    assert jnp.abs(half - full).max() < 0.15 * jnp.abs(full).max()
    assert jnp.abs(half - full).max() > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backbone": "resnet"}, "backbone 'resnet' is not one of 'resnet_50'"),
        ({"name": "v5"}, "name 'v5'"),
        ({"output_stride": 12}, "output_stride 12"),
        ({"atrous_rates": "many"}, "atrous_rates 'many'"),
        ({"backbone": "xception_65", "width_multiplier": 0.5}, "width_multiplier applies to"),
        ({"multi_grid": (1, 2, 4)}, "multi_grid does not apply"),
        ({"backbone": "resnet_50", "padding": "fixed"}, "padding and low_level apply to"),
        ({"backbone": "xception_65", "dilation_start": "at"}, "dilation_start 'at' does not"),
        ({"backbone": "vgg16", "multi_grid": (1, 2, 4)}, "multi_grid does not apply to vgg16"),
        (
            {"name": "v2", "backbone": "vgg16", "atrous_rates": ()},
            "v2 on vgg16 has a branch a rate",
        ),
        ({"name": "v1", "atrous_rates": (6, 12)}, "v1 takes one rate"),
        ({"multi_scale_features": True}, "multi_scale_features applies to v1 on vgg16, not"),
        ({"context": "aspp2"}, "context 'aspp2'"),
        ({"name": "v3", "context": "lraspp"}, "context 'lraspp' is v3plus"),
        ({"output_stride": 8, "decoder_output_stride": 16}, "decoder_output_stride 16 is coarser"),
        ({"dtype": "float8"}, "dtype 'float8'"),
    ],
)
def test_impossible_choices_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        models.build(**MOBILE | wrong)


def test_build_gives_a_flax_module_that_can_be_a_jit_argument():
    a, b = models.build(**MOBILE), models.build(**MOBILE)
    assert isinstance(a, nn.Module)
    assert hash(a) == hash(a)
    assert a == a
    assert isinstance(hash(b), int)


@pytest.mark.parametrize(("stride", "size"), [(8, (64, 96)), (16, (33, 50)), (32, (97, 65))])
@pytest.mark.parametrize(
    "keywords",
    [
        {"name": "v3plus", "backbone": "resnet_50_beta", "multi_grid": (1, 2, 4)},
        {"name": "v3plus", "backbone": "resnet_101", "image_pooling": False},
        {"name": "v3plus", "backbone": "mobilenet_v3_small_seg", "context": "lraspp"},
        {"name": "v3plus", "backbone": "xception_41", "context": "dpc"},
    ],
    ids=lambda k: k["backbone"],
)
def test_logits_of_every_family_have_the_decoders_stride(keywords, stride, size, fewest_layers):
    module = models.build(num_classes=4, output_stride=stride, **keywords)
    logits = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((2, *size, 3)))[0]
    )
    assert logits.shape == (2, *(-(-n // 4) for n in size), 4)


@pytest.mark.parametrize("name", ["v2", "fcn"])
def test_v2_and_fcn_answer_at_the_output_stride(name):
    module = models.build(name, "mobilenet_v2", 4, width_multiplier=0.25, output_stride=8)
    logits = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, 65, 97, 3)))[0]
    )
    assert logits.shape == (1, 9, 13, 4)


def test_v2_without_rates_is_the_plain_classifier():
    """[V2] Table 4, first row."""
    plain = models.build("v2", "resnet_101_caffe", 21, output_stride=8, atrous_rates=None)
    head = {k: v for k, v in shapes(plain)["params"].items() if k != "backbone"}
    assert jax.tree.map(jnp.shape, head) == {"logits1": {"kernel": (1, 1, 2048, 21), "bias": (21,)}}


def test_the_configuration_has_every_keyword_of_build():
    assert set(common.base().model) == set(inspect.signature(models.build).parameters)


@pytest.mark.parametrize(
    "backbone",
    [
        "mobilenet_v2",
        "mobilenet_v3_small_seg",
        pytest.param("vgg16", marks=pytest.mark.slow),
        pytest.param("resnet_50", marks=pytest.mark.slow),
        pytest.param("xception_41", marks=pytest.mark.slow),
    ],
)
def test_remat_changes_neither_variables_nor_gradients(backbone, fewest_layers):
    images = np.random.default_rng(0).standard_normal((2, 33, 33, 3))
    head = {"atrous_rates": None, "image_pooling": False, "decoder_convs": 1}
    with jax.enable_x64(True):
        steps = {}
        for remat in (False, True):
            module = models.build("v3plus", backbone, 3, **head, dtype="float64", remat=remat)
            variables = randomised(shapes(module, (33, 33)))
            variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)

            def loss(params, statistics, module=module):
                logits, updated = module.apply(
                    {"params": params, "batch_stats": statistics},
                    images,
                    train_batch_norm=True,
                    mutable=["batch_stats"],
                )
                return jnp.mean(jnp.square(logits)), updated

            gradient = jax.jit(jax.grad(loss, has_aux=True))
            steps[remat] = gradient(variables["params"], variables["batch_stats"])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
            steps[True],
            steps[False],
        )
