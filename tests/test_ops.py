import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from deeplab_jax import ops

CASES = [
    (stride, rate, pad) for stride in (1, 2) for rate in (1, 2, 3) for pad in ("same", "fixed")
]


def _padding(pad, size, stride, rate):
    if pad == "same":
        return ops.same_padding(size, (3, 3), stride, rate)
    return ops.fixed_padding((3, 3), rate)


@pytest.mark.parametrize(("stride", "rate", "pad"), CASES)
@pytest.mark.parametrize("size", [(11, 14), (9, 9)])
def test_depthwise_and_its_gradient_equal_the_grouped_convolution(stride, rate, pad, size):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, kernel = rng.standard_normal((2, *size, 5)), rng.standard_normal((3, 3, 5))
        padding = _padding(pad, size, stride, rate)

        def loss(function):
            return lambda x, k: jnp.sum(jnp.sin(function(x, k, stride, rate, padding)))

        ours = jax.value_and_grad(loss(ops.depthwise_conv2d), (0, 1))(x, kernel)
        native = jax.value_and_grad(loss(ops.depthwise_native), (0, 1))(x, kernel)
        # The kernel's gradient is summed in float32.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, native)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_and_its_gradient_equal_the_convolution(stride):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, kernel = rng.standard_normal((2, 7, 6, 4)), rng.standard_normal((1, 1, 4, 3))

        def native(x, k):
            return jax.lax.conv_general_dilated(
                x, k, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        def ours(x, k):
            return ops.conv2d(x, k, stride, 1, ((0, 0), (0, 0)))

        def both(function):
            return jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(function(x, k))), (0, 1))

        a, b = both(ours)(x, kernel), both(native)(x, kernel)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), a, b)


def test_batch_norm_and_its_gradient_equal_the_derived_one():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        x = rng.standard_normal((3, 5, 4, 6)) * 3 + 100
        scale, bias, weight = (rng.standard_normal(s) for s in ((6,), (6,), x.shape))

        def derived(x, scale, bias):
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            hat = (x - mean) / jnp.sqrt(var + 1e-3)
            return jnp.sum(jnp.sin(hat * scale + bias) * weight)

        def ours(x, scale, bias):
            return jnp.sum(jnp.sin(ops.batch_norm(x, scale, bias, 1e-3)[0]) * weight)

        a = jax.value_and_grad(ours, (0, 1, 2))(x, scale, bias)
        b = jax.value_and_grad(derived, (0, 1, 2))(x, scale, bias)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), a, b)


def test_batch_norm_of_a_constant_is_finite():
    x = jnp.full((2, 3, 3, 2), 7.0)
    value, grads = jax.value_and_grad(
        lambda x: jnp.sum(ops.batch_norm(x, jnp.ones(2), jnp.zeros(2), 1e-3)[0])
    )(x)
    assert value == 0
    assert np.isfinite(grads).all()


def test_same_padding_is_tensorflows():
    x, kernel = jnp.ones((1, 9, 8, 1)), jnp.ones((3, 3, 1, 2))
    for stride in (1, 2):
        theirs = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        ours = ops.conv2d(x, kernel, stride, 1, ops.same_padding((9, 8), (3, 3), stride))
        np.testing.assert_array_equal(ours, theirs)


def test_strides_become_rates_of_the_layers_after():
    strides = [2, 2, 2, 2, 1, 2, 1]
    assert ops.strides_and_rates(strides, None) == [(s, 1) for s in strides]
    assert ops.strides_and_rates(strides, 8) == [
        (2, 1), (2, 1), (2, 1), (1, 1), (1, 2), (1, 2), (1, 4)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="output_stride 12 cannot be reached"):
        ops.strides_and_rates(strides, 12)


def test_default_rates_follow_the_output_stride():
    assert [ops.default_atrous_rates(s) for s in (32, 16, 8)] == [
        (3, 6, 9), (6, 12, 18), (12, 24, 36)
    ]  # fmt: skip


def test_resize_bilinear_equals_the_reference():
    golden = np.load(GOLDEN / "fn_resize.npz")
    x = jnp.asarray(golden["x"])
    x = x if x.ndim == 4 else x[None]
    for name in golden.files:
        if name.startswith("bilinear_ac_"):
            size = tuple(map(int, name.rsplit("_", 1)[1].split("x")))
            ours = ops.resize_bilinear(x, size, align_corners=True)
            np.testing.assert_allclose(
                np.squeeze(ours), np.squeeze(golden[name]), rtol=1e-5, atol=1e-4
            )


def test_resize_bilinear_half_pixel_equals_jax_image():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    theirs = jax.image.resize(x, (2, 13, 20, 3), "linear", antialias=False)
    ours = ops.resize_bilinear(x, (13, 20), align_corners=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
