import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from deeplab_jax import ops
from deeplab_jax.ops import atrous, convolution, depthwise, stem, winograd
from deeplab_jax.ops.convolution import cpu_form

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
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), ours, native)


# kernel, image, stride, rate, padding: uneven ones, rates beyond the image, rows left unread
DEPTHWISE_CASES = [
    ((3, 3), (9, 7), 1, (6, 6), ((6, 6), (6, 6))),
    ((3, 3), (9, 7), 1, (12, 3), ((12, 12), (3, 3))),
    ((3, 3), (9, 8), 2, (1, 1), ((0, 1), (0, 1))),
    ((3, 3), (9, 9), 2, (2, 3), ((1, 4), (3, 3))),
    ((5, 5), (10, 11), 2, (1, 1), ((2, 2), (1, 2))),
    ((3, 3), (9, 9), 1, (1, 1), ((0, 0), (0, 0))),
    ((4, 2), (9, 9), 3, (1, 2), ((1, 1), (2, 2))),
]


def test_the_kernel_gradient_of_1x1_convolutions_is_one_on_all_platforms():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 5, 7, 3)), rng.standard_normal((2, 5, 7, 4))
    with jax.enable_x64(True):
        expected = np.einsum("bhwi,bhwo->io", x, dy)
        for form in (convolution._over_rows, convolution._over_pixels):
            np.testing.assert_allclose(form(jnp.asarray(x), jnp.asarray(dy)), expected, atol=1e-12)


@pytest.mark.parametrize("case", DEPTHWISE_CASES, ids=str)
def test_depthwise_gradients_at_any_stride_rate_and_padding(case, monkeypatch):
    kernel_size, size, stride, rate, padding = case
    monkeypatch.setattr(depthwise, "_TURN_BYTES", 500)  # several turns
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = rng.standard_normal((2, *size, 3)), rng.standard_normal((*kernel_size, 3))
        assert_same_with_gradients(
            lambda x, k: ops.depthwise_conv2d(x, k, stride, rate, padding),
            lambda x, k: ops.depthwise_native(x, k, stride, rate, padding),
            x,
            kernel,
        )


def assert_same_with_gradients(ours, native, *arguments, atol=1e-12):
    def with_gradients(function, dy, *arguments):
        y, vjp = jax.vjp(function, *arguments)
        return y, vjp(dy)

    shape = jax.eval_shape(native, *arguments)
    dy = np.random.default_rng(9).standard_normal(shape.shape).astype(shape.dtype)
    with_gradients = jax.jit(with_gradients, static_argnums=0)
    expected, expected_gradients = with_gradients(native, dy, *arguments)
    y, gradients = with_gradients(ours, dy, *arguments)
    np.testing.assert_allclose(y, expected, atol=atol)
    for gradient, wanted in zip(gradients, expected_gradients):
        np.testing.assert_allclose(gradient, wanted, atol=atol)


ATROUS_CASES = [
    ((3, 3), (9, 9), (2, 2), ((2, 2), (2, 2))),
    ((3, 3), (9, 7), (6, 6), ((6, 6), (6, 6))),
    ((3, 3), (9, 7), (12, 3), ((12, 12), (3, 3))),
    ((4, 4), (11, 9), (4, 4), ((6, 6), (6, 6))),  # LargeFOV's kernels are even, too
    ((7, 7), (13, 13), (4, 4), ((12, 12), (12, 12))),
    ((3, 3), (9, 8), (3, 2), ((1, 5), (0, 4))),
    ((3, 3), (9, 9), (2, 3), ((0, 0), (0, 0))),
    ((2, 3), (5, 6), (3, 1), ((9, 8), (1, 1))),  # rows of output that see padding alone
]


CPU_FORMS = [
    *((form, case) for form in (atrous.valid_taps, atrous.one_product) for case in ATROUS_CASES),
    *((winograd.winograd, case) for case in ATROUS_CASES if case[0] == (3, 3)),
    (winograd.winograd, ((3, 3), (7, 10), (1, 1), ((1, 1), (1, 1)))),
    (winograd.winograd, ((3, 3), (8, 8), (1, 1), ((0, 2), (0, 0)))),
]


def _name(value):
    return value.__name__ if callable(value) else str(value)


@pytest.mark.parametrize(("form", "case"), CPU_FORMS, ids=_name)
def test_cpu_forms_and_their_gradients_equal_the_convolution(form, case):
    kernel_size, size, rate, padding = case
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = rng.standard_normal((2, *size, 3)), rng.standard_normal((*kernel_size, 3, 4))
        assert_same_with_gradients(
            lambda x, k: form(x, k, rate, padding),
            lambda x, k: ops.dense_native(x, k, 1, rate, padding),
            x,
            kernel,
        )


@pytest.mark.parametrize(
    ("x", "kernel", "rate", "form"),
    [
        ((1, 33, 33, 2048), (3, 3, 2048, 256), 6, winograd.winograd),
        ((1, 33, 33, 2048), (3, 3, 2048, 256), 18, atrous.valid_taps),
        ((1, 33, 33, 2048), (3, 3, 2048, 21), 12, atrous.one_product),  # a classifier of v2
        ((1, 65, 65, 512), (3, 3, 512, 512), 2, winograd.winograd),
        ((1, 65, 65, 512), (4, 4, 512, 512), 2, None),
        ((1, 129, 129, 64), (3, 3, 64, 64), 1, winograd.winograd),
        ((1, 33, 33, 64), (3, 3, 64, 64), 1, None),
        ((1, 129, 129, 64), (3, 3, 64, 21), 1, None),
        ((1, 5, 5, 256), (3, 3, 256, 256), 1, None),
    ],
)
def test_the_form_of_a_dense_convolution_follows_its_shape(x, kernel, rate, form):
    padding = ops.fixed_padding(kernel[:2], rate)
    assert cpu_form(x, kernel, ops.pair(rate), padding, "float32") is form


@pytest.mark.parametrize(
    ("size", "padding"),
    [((9, 12), ((1, 1), (1, 1))), ((8, 7), ((0, 1), (0, 0))), ((13, 6), ((2, 3), (0, 2)))],
    ids=str,
)
def test_the_stem_on_pixel_pairs_and_its_gradients(size, padding):
    rng = np.random.default_rng(0)

    def native(x, kernel):
        return ops.dense_native(x, kernel, 2, 1, padding)

    with jax.enable_x64(True):
        x, kernel = rng.standard_normal((2, *size, 3)), rng.standard_normal((3, 3, 3, 4))
        assert_same_with_gradients(
            lambda x, k: stem.pixel_pairs(x, k, padding, native), native, x, kernel
        )


def test_bfloat16_is_left_out_of_winograds_differences():
    shapes = (1, 65, 65, 64), (3, 3, 64, 64)
    assert cpu_form(*shapes, (1, 1), ((1, 1), (1, 1)), "bfloat16") is None


@pytest.mark.parametrize(
    ("size", "channels", "rate"),
    [((9, 11), (64, 4), 4), ((9, 11), (8, 8), 4), ((64, 49), (64, 80), 1), ((50, 65), (80, 64), 2)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_convolution_equals_the_native_one(dtype, size, channels, rate):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *size, channels[0])), dtype)
    kernel = jnp.asarray(rng.standard_normal((3, 3, *channels)) / 24, dtype)
    padding = ops.fixed_padding((3, 3), rate)

    def run(function):
        y, vjp = jax.vjp(lambda x, k: function(x, k, 1, rate, padding), x, kernel)
        return y, *vjp(jnp.ones_like(y))

    for ours, native in zip(run(ops.conv2d), run(ops.dense_native)):
        assert ours.dtype == native.dtype == dtype
        scale = np.abs(np.asarray(native, np.float32)).max()
        tolerance = scale * (1e-5 if dtype == "float32" else 3e-2)
        np.testing.assert_allclose(
            np.asarray(ours, np.float32), np.asarray(native, np.float32), atol=tolerance
        )


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((9, 9), 3, 2, ((1, 1), (1, 1))),
        ((9, 8), 3, 2, ((0, 1), (0, 2))),
        ((8, 7), 2, 2, ((0, 0), (0, 1))),
        ((9, 9), 3, 1, ((1, 1), (1, 1))),
        ((10, 11), 3, 3, ((1, 1), (0, 0))),
        ((10, 8), 2, 2, ((0, 0), (0, 0))),
    ],
)
def test_max_pool_and_its_gradient_equal_the_window_reduction(shape, size, stride, padding):
    # Many equal values, as after a ReLU: the gradient goes to the first of them.
    x = np.random.default_rng(0).integers(0, 3, (2, *shape, 5)).astype(np.float32)

    def native(x):
        return ops.max_pool_native(x, size, stride, padding)

    assert_same_with_gradients(
        lambda x: ops.max_pool(x, size, stride, padding), native, x, atol=1e-5
    )
    x[0, 3, 3, 0] = np.nan  # a loss must become NaN by it
    y, _ = jax.vjp(lambda x: ops.max_pool(x, size, stride, padding), x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(native(x)))


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


def test_resize_nearest_equals_the_reference_and_half_pixel_jax_image():
    golden = np.load(GOLDEN / "fn_resize.npz")
    label = jnp.asarray(golden["lab"][..., 0])
    for name in golden.files:
        if name.startswith("nearest_ac_"):
            size = tuple(map(int, name.rsplit("_", 1)[1].split("x")))
            ours = ops.resize_nearest(label, size, align_corners=True)
            np.testing.assert_array_equal(ours, golden[name][..., 0])
    for size in ((3, 5), (40, 61)):
        theirs = jax.image.resize(label, (len(label), *size), "nearest")
        np.testing.assert_array_equal(ops.resize_nearest(label, size, False), theirs)
