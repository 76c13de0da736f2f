"""DeepLab v1 and v2 on VGG-16: the papers' parameters, fields of view and atrous equalities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import count, randomised, shapes
from test_train import small

import deeplab_jax
from deeplab_jax import checkpoint, convert, importers, main, models, ops
from deeplab_jax.models import v1, vgg
from deeplab_jax.models.layers import Logits
from deeplab_jax.ops import convolution

CONVOLUTIONS = 14_714_688
# fc6's kernel, rate and channels: nominal field of view and measured support in px, parameters.
TABLE = {
    (7, 4, 4096): (224, 419, CONVOLUTIONS + 102_764_544 + 16_781_312 + 86_037),  # 134.3M
    (4, 4, 4096): (128, 323, CONVOLUTIONS + 33_558_528 + 16_781_312 + 86_037),  # 65.1M
    (4, 8, 4096): (224, 419, CONVOLUTIONS + 33_558_528 + 16_781_312 + 86_037),  # 65.1M
    (3, 12, 1024): (224, 419, CONVOLUTIONS + 4_719_616 + 1_049_600 + 21_525),  # 20.5M
}
MILLIONS = (134.3, 65.1, 65.1, 20.5)
THIN = ((2, 4), (2, 4), (3, 8), (3, 8), (3, 8))


@pytest.fixture
def thin(monkeypatch):
    """VGG-16 with few channels, convolved by XLA: the same geometry in a hundredth of the time."""
    monkeypatch.setattr(vgg, "BLOCKS", THIN)
    monkeypatch.setattr(convolution, "cpu_form", lambda *convolution: None)


def build(name="v1", **keywords):
    keywords = {"num_classes": 5, "output_stride": 8, "fc_channels": 8} | keywords
    return models.build(name, "vgg16", **keywords)


def pictures(height, width, seed=0):
    return np.random.default_rng(seed).standard_normal((1, height, width, 3)).astype(np.float32)


# --- [V2] Table 1 ------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_parameters_and_nominal_field_of_view_are_the_papers(row):
    kernel, rate, channels = row
    field, _, parameters = TABLE[row]
    module = build(
        num_classes=21, fc_kernel_size=kernel, fc_channels=channels, atrous_rates=(rate,)
    )
    variables = shapes(module)
    assert set(variables) == {"params"}
    assert count(variables) == parameters
    assert round(parameters / 1e6, 1) == MILLIONS[list(TABLE).index(row)]
    assert v1.field_of_view(kernel, rate) == field


def support(module, size):
    """(height, width) in px of what the output in the middle of an image of `size` depends on.

    Every weight is positive and the image a bowl: positive filters keep it one, and the gradient
    runs through the outermost place of each pooling's window.
    """
    variables = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, (leaf.ndim > 1) / np.prod(leaf.shape[:-1])),
        shapes(module),
    )
    distance = jnp.abs(jnp.arange(size) - size // 2).astype(jnp.float32)
    images = jnp.broadcast_to((distance[:, None] + distance)[None, :, :, None], (1, size, size, 3))

    @jax.grad
    def middle(images):
        logits = module.apply(variables, images)
        return logits[0, logits.shape[1] // 2, logits.shape[2] // 2, 0]

    used = np.asarray(jax.jit(middle)(images)[0]).any(axis=-1)
    return tuple(int(np.ptp(np.flatnonzero(used.any(axis=axis))) + 1) for axis in (1, 0))


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_an_output_depends_on_more_than_the_nominal_field(row, thin):
    kernel, rate, _ = row
    module = build(fc_kernel_size=kernel, atrous_rates=(rate,))
    assert support(module, 449) == (TABLE[row][1],) * 2


def test_the_original_has_the_receptive_field_of_fcn(thin):
    """[FCN] Table 1: 404 px, with windows of 2x2 and fc6 of 7x7 at stride 32."""
    backbone = partial(vgg.VGG16, 32, pool_size=2)
    module = v1.DeepLabV1(backbone, partial(v1.FullyConnected, 7, 1, 8), None, partial(Logits, 5))
    assert support(module, 672) == (404, 404)


@pytest.mark.parametrize(("kernel", "rates"), [(3, (12, 6, 3)), (4, (8, 4, 2)), (7, (4, 2, 1))])
def test_auto_keeps_the_field_of_view(kernel, rates):
    for stride, rate in zip((8, 16, 32), rates):
        module = build(fc_kernel_size=kernel, output_stride=stride)
        layers = deeplab_jax.count(module, (65, 65))["layers"]
        assert [row["rate"] for row in layers if row["name"] == "fc6"] == [rate]
        assert v1.field_of_view(kernel, rate, stride) == 224


# --- graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_strides_become_rates_and_endpoints_keep_their_size(stride, thin):
    module = vgg.VGG16(stride)
    images = jnp.zeros((1, 70, 97, 3))
    endpoints = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), images, train=False)[0]
    )
    for i in range(1, 6):
        halved = min(2**i, stride)
        assert endpoints[f"pool{i}"].shape[1:3] == (-(-70 // halved), -(-97 // halved))
    for i in range(5):
        assert endpoints[f"low_level_{2**i}"].shape[1] == -(-70 // min(2**i, stride))
    assert endpoints["features"].shape == endpoints["pool5"].shape
    rates = {row["name"]: row["rate"] for row in deeplab_jax.count(module, (70, 97))["layers"]}
    assert len(rates) == 13
    assert rates == {
        f"conv{block}_{i}": 2 if (block, stride) == (5, 8) else 1
        for block, (convs, _) in enumerate(THIN, start=1)
        for i in range(1, convs + 1)
    }


def test_multi_scale_features_read_image_and_poolings():
    plain, several = (
        deeplab_jax.count(build(num_classes=21, fc_channels=1024, multi_scale_features=m), (65, 97))
        for m in (False, True)
    )
    extra = [row for row in several["layers"] if row["name"].startswith("multi_scale")]
    assert [row["stride"] for row in extra if row["kernel"] == (3, 3)] == [8, 4, 2, 1, 1]
    assert {row["output"] for row in extra} == {(9, 13, 128)}
    perceptrons = 9 * (3 + 64 + 128 + 256 + 512) * 128 + 5 * 128 + 5 * (128 * 128 + 128)
    assert several["parameters"] - plain["parameters"] == perceptrons + 5 * 128 * 21
    assert several["layers"][-1]["input"] == (9, 13, 1024 + 640)


@pytest.mark.parametrize(
    ("name", "keywords"), [("v1", {}), ("v1", {"multi_scale_features": True}), ("v2", {})]
)
def test_variables_apply_at_any_output_stride(name, keywords, thin):
    at = {s: build(name, output_stride=s, **keywords) for s in (8, 16, 32)}
    trees = [jax.tree.map(jnp.shape, shapes(module)) for module in at.values()]
    assert trees[0] == trees[1] == trees[2]
    variables = randomised(shapes(at[8]))
    for stride, module in at.items():
        logits = jax.jit(module.apply)(variables, pictures(70, 97))
        assert logits.shape == (1, -(-70 // stride), -(-97 // stride), 5)
        assert logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("coarse", "dense", "endpoint", "edge"),
    [(16, 8, "low_level_16", 14), (32, 16, "features", 8)],
)
def test_shift_and_stitch_is_the_atrous_form(coarse, dense, endpoint, edge, thin):
    """[FCN] Sec. 3.2: the strided network on shifted images, interleaved, is the atrous one.

    Up to conv5 at stride 8: pool5's windows, as released, do not spread with the rate.
    """
    images = pictures(321, 321)
    at = {stride: vgg.VGG16(stride) for stride in (coarse, dense)}
    variables = randomised(
        jax.eval_shape(lambda: at[dense].init(jax.random.key(0), images, train=False))
    )

    def run(stride, images):
        return jax.jit(partial(at[stride].apply, train=False))(variables, images)[endpoint]

    atrous = np.asarray(run(dense, images))
    stitched = np.zeros_like(atrous)
    for i in range(2):
        for j in range(2):
            stitched[:, i::2, j::2] = run(coarse, images[:, i * dense :, j * dense :])
    scale = np.abs(atrous).max()
    inside = np.s_[:, edge:, edge:]  # where no shifted image's new edge is seen
    np.testing.assert_allclose(stitched[inside] / scale, atrous[inside] / scale, atol=1e-5)
    assert np.abs(stitched - atrous).max() > 1e-3 * scale


# --- ASPP and multi-scale inputs ---------------------------------------------------------------


def test_a_branch_of_aspp_alone_is_large_fov(thin):
    aspp = build("v2", fc_channels=16)  # ASPP-L: 6, 12, 18, 24
    variables = randomised(shapes(aspp))
    params = variables["params"]
    heads = [f"{name}{i}" for name in ("branch", "logits") for i in (1, 2, 3, 4)]
    assert sorted(params) == ["backbone", *heads]
    images = pictures(97, 129)
    for i, rate in enumerate((6, 12, 18, 24), start=1):
        zeroed = {
            f"logits{j}": jax.tree.map(jnp.zeros_like, params[f"logits{j}"])
            for j in range(1, 5)
            if j != i
        }
        alone = jax.jit(aspp.apply)({"params": params | zeroed}, images)
        large_fov = build(atrous_rates=(rate,), fc_channels=16)
        same = {"backbone": params["backbone"], "logits": params[f"logits{i}"]}
        theirs = jax.jit(large_fov.apply)({"params": same | params[f"branch{i}"]}, images)
        np.testing.assert_allclose(alone, theirs, atol=1e-5 * np.abs(theirs).max())
        assert np.abs(theirs).max() > 0


def test_aspp_of_vgg_is_four_times_fc6_to_fc8():
    small, large = (build("v2", atrous_rates=r, num_classes=21) for r in ((2, 4, 8, 12), "auto"))
    assert jax.tree.map(jnp.shape, shapes(small)) == jax.tree.map(jnp.shape, shapes(large))
    full = build("v2", num_classes=21, fc_channels=1024)
    head = TABLE[3, 12, 1024][2] - CONVOLUTIONS
    assert count(shapes(full)) == CONVOLUTIONS + 4 * head


def test_scales_are_fused_by_maximum(thin):
    scales = (0.5, 0.75, 1.0)
    several, plain = build("v2", input_scales=scales), build("v2")
    images = pictures(97, 129)
    variables = randomised(shapes(plain))
    outputs = jax.jit(several.apply)(variables, images)
    size = outputs["logits_1"].shape[1:3]
    assert size == (13, 17)
    upsampled = []
    for scale in scales:
        scaled = ops.resize_bilinear(images, ops.scaled_size((97, 129), scale, True), True)
        logits = jax.jit(plain.apply)(variables, scaled)
        np.testing.assert_allclose(outputs[f"logits_{scale:g}"], logits, rtol=1e-4, atol=1e-5)
        upsampled.append(ops.resize_bilinear(logits, size, True))
    np.testing.assert_allclose(
        outputs["logits"], jnp.stack(upsampled).max(axis=0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_dropout_of_a_half_acts_in_training_alone(name, thin):
    module = build(name, fc_channels=64)
    variables = randomised(shapes(module))
    images = pictures(65, 65)

    def run(key, train):
        return jax.jit(partial(module.apply, train=train))(
            variables, images, rngs={"dropout": jax.random.key(key)}
        )

    still = run(0, False)
    np.testing.assert_array_equal(still, run(1, False))
    assert np.abs(run(0, True) - run(1, True)).max() > 0.01 * np.abs(still).max()


def test_a_network_without_batch_norm_trains_and_resumes(thin, data_folder, tmp_path):
    changes = {
        "model__name": "v1",
        "model__backbone": "vgg16",
        "model__atrous_rates": "auto",
        "model__fc_channels": 8,
        "train__checkpoint_every": 1,
    }
    for steps in (1, 2):
        results = main.run(small(data_folder, **changes, train__steps=steps), "train", tmp_path)
        assert checkpoint.latest_step(tmp_path) == steps
        assert 0 <= results["mean_iou"] <= 1


def test_a_network_without_batch_norm_is_exported_and_imported(thin, tmp_path):
    keywords = {"name": "v2", "backbone": "vgg16", "num_classes": 3, "fc_channels": 8}
    variables = randomised(shapes(models.build(**keywords)))
    description = {"model": keywords, "data": {"normalization": "imagenet"}, "source": "a test"}
    convert.export(tmp_path / "model.safetensors", variables, description)
    assert importers.infer(tmp_path) == keywords
    convert.convert(tmp_path / "model.safetensors", tmp_path / "imported", None, None)
    read, _ = checkpoint.read_variables(tmp_path / "imported")
    assert read["batch_stats"] == {}
    jax.tree.map(np.testing.assert_array_equal, read["params"], variables["params"])
