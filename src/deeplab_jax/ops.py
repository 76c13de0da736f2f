"""Pure array maths of DeepLab: atrous convolution, padding, stride→rate arithmetic, resizing.

Arrays are [B, H, W, C]; sizes are (height, width); a rate is the paper's atrous rate r (the
spacing of the filter taps, [V3] Sec. 3.1). Nothing here knows a model.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]
Rate = int | tuple[int, int]  # both axes alike, or (height, width)


def at_least_float32(dtype) -> jnp.dtype:
    """The dtype to sum and interpolate in: float32, or float64 for float64."""
    return jnp.dtype("float64" if dtype == jnp.float64 else "float32")


# --- where stride becomes dilation -----------------------------------------------------------


def strides_and_rates(
    strides: Sequence[int], output_stride: int | None, dilation_start: str = "after"
) -> list[tuple[int, int]]:
    """Turns strides into atrous rates once `output_stride` is reached ([V3] Sec. 3.2).

    A layer whose stride is taken away keeps the present rate; its would-be stride spaces the
    taps of the layers *after* it, so every filter still sees the samples it was trained on.

    Args:
      strides: nominal stride of each layer or unit of a backbone, in order, stem included.
      output_stride: wanted ratio of input to feature size; None keeps every stride.
      dilation_start: "after" as said above (TensorFlow, torchvision); "at" spaces the taps of
        the layer that lost its stride, too (Caffe's DeepLab and the PyTorch ports after it).

    Returns:
      One (stride, rate) pair a layer.

    Raises:
      ValueError: if the strides never multiply to exactly `output_stride`.
    """
    plan, current, rate = [], 1, 1
    for stride in strides:
        if output_stride is not None and current * stride > output_stride:
            before, rate = rate, rate * stride
            plan.append((1, rate if dilation_start == "at" else before))
        else:
            plan.append((stride, rate))
            current *= stride
    if output_stride is not None and current != output_stride:
        raise ValueError(
            f"output_stride {output_stride} cannot be reached: this backbone's strides give "
            f"{sorted({_product(strides[:i]) for i in range(1, len(strides) + 1)})}"
        )
    return plan


def _product(values: Sequence[int]) -> int:
    return functools.reduce(lambda a, b: a * b, values, 1)


def default_atrous_rates(
    output_stride: int, rates: Sequence[int] = (6, 12, 18), at: int = 16
) -> tuple[int, ...]:
    """Rates, given for output stride `at`, that keep their reach in pixels at another one.

    By default the ASPP's: 32 → 3,6,9; 16 → 6,12,18; 8 → 12,24,36 ([V3] Sec. 3.3).
    """
    return tuple(max(1, rate * at // output_stride) for rate in rates)


# --- padding ---------------------------------------------------------------------------------


def same_padding(
    size: tuple[int, int], kernel: tuple[int, int], stride: int = 1, rate: Rate = 1
) -> Padding:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel of padding at the end.

    At stride 2 the place of the padding depends on whether the size is even, so features of
    even-sized images are shifted by half a pixel against `fixed_padding`.
    """
    pads = []
    for n, k, r in zip(size, kernel, pair(rate)):
        k = k + (k - 1) * (r - 1)
        total = max((-(-n // stride) - 1) * stride + k - n, 0)
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


def fixed_padding(kernel: tuple[int, int], rate: Rate = 1) -> Padding:
    """Padding that depends on the kernel alone: (k_eff - 1) // 2 before, the rest after.

    What Xception and ResNet of the official code do at stride 2 (and PyTorch everywhere, for
    odd kernels): the sampling grid starts at pixel 0 at any size.
    """
    totals = [(k - 1) * r for k, r in zip(kernel, pair(rate))]
    return tuple((t // 2, t - t // 2) for t in totals)


def pair(rate: Rate) -> tuple[int, int]:
    """A rate as (height, width)."""
    return (rate, rate) if isinstance(rate, int) else tuple(rate)


# --- convolution -----------------------------------------------------------------------------


class Convolution(NamedTuple):
    """What `observing` reports: shapes x [B, H, W, I], kernel [kh, kw, ...], y [B, H', W', O]."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    y: tuple[int, ...]
    stride: int
    rate: Rate
    groups: int


_observer: ContextVar[Callable[[Convolution], None] | None] = ContextVar("observer", default=None)


@contextlib.contextmanager
def observing(observer: Callable[[Convolution], None]):
    """Calls `observer` at every `conv2d` and `depthwise_conv2d` traced or run inside."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def _observed(convolution):
    # Around the public functions: what they are made of may be traced twice or not at all.
    @functools.wraps(convolution)
    def wrapper(x, kernel, stride, rate, *args, **kwargs):
        y = convolution(x, kernel, stride, rate, *args, **kwargs)
        if (observer := _observer.get()) is not None:
            # A depthwise kernel [kh, kw, C] has no axis of input channels: one a group.
            group = kernel.shape[2] if kernel.ndim == 4 else 1
            groups = x.shape[-1] // group
            observer(Convolution(x.shape, kernel.shape, y.shape, stride, rate, groups))
        return y

    return wrapper


@_observed
def conv2d(x: jax.Array, kernel: jax.Array, stride: int, rate: Rate, padding: Padding) -> jax.Array:
    """Atrous convolution. x [B, H, W, I], kernel [kh, kw, I, O] → [B, H', W', O].

    A 1x1 kernel is a matrix product over channels: XLA's CPU convolution is 1.4 times slower
    forward and 3 times slower backward than the product.
    """
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        return _pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=pair(rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def _pointwise(x, kernel):
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


def _pointwise_fwd(x, kernel):
    return _pointwise(x, kernel), (x, kernel)


def _pointwise_bwd(residuals, dy):
    """The plain gradients, with dy written out once in its own layout.

    Left to itself XLA fuses what made dy (batch norm's gradient) into a transposed copy for the
    kernel's product: 9 ms instead of 5 at [12, 49, 49, 176] → 128 channels.
    """
    x, kernel = residuals
    dy = lax.optimization_barrier(dy)
    dx = lax.dot_general(dy, kernel, (((3,), (1,)), ((), ())))
    rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dx, lax.dot_general(rows[0].T, rows[1], (((1,), (0,)), ((), ())))


_pointwise.defvjp(_pointwise_fwd, _pointwise_bwd)


@_observed
def depthwise_conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, rate: Rate, padding: Padding
) -> jax.Array:
    """Depthwise atrous convolution. x [B, H, W, C], kernel [kh, kw, C] → [B, H', W', C].

    On CPU it is a sum of shifted products with a gradient of its own: XLA's grouped convolution
    is 10 to 40 times slower there. Other platforms take the grouped convolution.
    """
    return _depthwise(x, kernel, stride, pair(rate), padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x, kernel, stride, rate, padding):
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, k: _depthwise_shifted(x, k, stride, rate, padding),
        default=lambda x, k: depthwise_native(x, k, stride, rate, padding),
    )


def _depthwise_fwd(x, kernel, stride, rate, padding):
    return _depthwise(x, kernel, stride, rate, padding), (x, kernel)


def _depthwise_bwd(stride, rate, padding, residuals, dy):
    def cpu(x, kernel, dy):
        return (
            _depthwise_shifted_dx(x.shape, kernel, dy, stride, rate, padding),
            _depthwise_shifted_dkernel(x, kernel, dy, stride, rate, padding),
        )

    def native(x, kernel, dy):
        _, vjp = jax.vjp(lambda x, k: depthwise_native(x, k, stride, rate, padding), x, kernel)
        return vjp(dy)

    return lax.platform_dependent(*residuals, dy, cpu=cpu, default=native)


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def depthwise_native(x, kernel, stride, rate, padding):
    """`depthwise_conv2d` as XLA's grouped convolution: the form to check against."""
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=pair(rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _depthwise_shifted(x, kernel, stride, rate, padding):
    """Sum over taps of (shifted x) * tap; the shifts are slices of the padded input."""
    # Written out before use: fused into the taps, what made x would be computed nine times.
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))
    (kh, kw, _), (rate_h, rate_w) = kernel.shape, rate
    height = (x.shape[1] - (kh - 1) * rate_h - 1) // stride + 1
    width = (x.shape[2] - (kw - 1) * rate_w - 1) // stride + 1
    return sum(
        _window(x, i * rate_h, j * rate_w, height, width, stride) * kernel[i, j]
        for i in range(kh)
        for j in range(kw)
    )


def _window(x, top, left, height, width, stride):
    return lax.slice(
        x,
        (0, top, left, 0),
        (x.shape[0], top + (height - 1) * stride + 1, left + (width - 1) * stride + 1, x.shape[3]),
        (1, stride, stride, 1),
    )


def _depthwise_shifted_dx(x_shape, kernel, dy, stride, rate, padding):
    """Gradient of the input: dy, spread to the input's grid, through the mirrored kernel."""
    spread = []
    for axis in (1, 2):
        k_eff = (kernel.shape[axis - 1] - 1) * rate[axis - 1]
        low = k_eff - padding[axis - 1][0]
        # As many samples as the input has, whatever the stride left unread at its end.
        high = x_shape[axis] + k_eff - low - ((dy.shape[axis] - 1) * stride + 1)
        spread.append((low, high, stride - 1))
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    return _depthwise_shifted(dy, kernel[::-1, ::-1], 1, rate, ((0, 0), (0, 0)))


def _depthwise_shifted_dkernel(x, kernel, dy, stride, rate, padding):
    """Gradient of the kernel, one output row a scan step.

    All rows of a tap at once would fuse nine strided reads into one slow loop; row by row the
    operands stay in cache (5.6 ms against 31 ms at [4, 33, 33, 728]).
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
    dy = dy.astype(jnp.float32)
    (kh, kw, _), (rate_h, rate_w) = kernel.shape, rate
    width = dy.shape[2]

    def row(total, i):
        dy_row = lax.dynamic_index_in_dim(dy, i, axis=1, keepdims=False)  # [B, W', C]
        taps = []
        for u in range(kh):
            x_row = lax.dynamic_index_in_dim(x, i * stride + u * rate_h, axis=1, keepdims=False)
            for v in range(kw):
                left = v * rate_w
                window = x_row[:, left : left + (width - 1) * stride + 1 : stride]
                taps.append(jnp.sum(window * dy_row, axis=(0, 1)))
        return total + jnp.stack(taps), None

    zeros = jnp.zeros((kh * kw, x.shape[-1]), jnp.float32)
    total, _ = lax.scan(row, zeros, jnp.arange(dy.shape[1]))
    return total.reshape(kernel.shape).astype(kernel.dtype)


# --- pooling ----------------------------------------------------------------------------------


def max_pool(x: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    """Maximum over size x size windows of [B, H, W, C]; padding never wins."""
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), ((0, 0), *padding, (0, 0))
    )


def average_pool(
    x: jax.Array, window: tuple[int, int] | None = None, stride: tuple[int, int] = (1, 1)
) -> jax.Array:
    """Mean over windows of [B, H, W, C] inside the image; None: over all of it, [B, 1, 1, C].

    Summed in float32: thousands of bfloat16 terms would lose the small ones. A window larger
    than the image is the image.
    """
    wide = x.astype(at_least_float32(x.dtype))
    if window is None or all(w >= n for w, n in zip(window, x.shape[1:3])):
        return jnp.mean(wide, axis=(1, 2), keepdims=True).astype(x.dtype)
    window = tuple(min(w, n) for w, n in zip(window, x.shape[1:3]))
    total = lax.reduce_window(wide, 0.0, lax.add, (1, *window, 1), (1, *stride, 1), "VALID")
    return (total / (window[0] * window[1])).astype(x.dtype)


# --- batch normalisation ---------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x [B, H, W, C] by its own statistics over B, H, W; returns (y, mean, var).

    The statistics are float32 or wider, the variance is the biased one. The gradient is written
    by hand: two sums and one pass over x, where the derived one keeps a second copy of x.
    The returned mean and var are for the running statistics: no gradient flows through them.
    """
    return _batch_norm_fwd(x, scale, bias, epsilon)[0]


def _batch_norm_fwd(x, scale, bias, epsilon):
    wide = x.astype(at_least_float32(x.dtype))
    mean = jnp.mean(wide, axis=(0, 1, 2))
    # About the mean, not E[x²] - E[x]²: that difference cancels where the mean is large.
    var = jnp.mean(jnp.square(wide - mean), axis=(0, 1, 2))
    factor = scale * lax.rsqrt(var + epsilon)
    y = (wide * factor + (bias - mean * factor)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_bwd(epsilon, residuals, cotangents):
    x, scale, mean, var = residuals
    wide = x.astype(mean.dtype)
    dy = cotangents[0].astype(mean.dtype)
    inverse = lax.rsqrt(var + epsilon)
    count = x.size // x.shape[-1]
    dbias = jnp.sum(dy, axis=(0, 1, 2))
    dscale = jnp.sum(dy * (wide - mean), axis=(0, 1, 2)) * inverse
    # dx = scale / std * (dy - mean(dy) - x_hat * mean(dy * x_hat)), as a * dy + b * x + c.
    a = scale * inverse
    b = -a * inverse * dscale / count
    c = -a * dbias / count - b * mean
    dx = (a * dy + b * wide + c).astype(x.dtype)
    return dx, dscale.astype(scale.dtype), dbias.astype(scale.dtype)


batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


# --- resizing --------------------------------------------------------------------------------


def scaled_size(size: tuple[int, int], scale: float, align_corners: bool) -> tuple[int, int]:
    """(height, width) of an image resized by `scale`: int((n - 1) * scale + 1) with aligned corners
    as the official code has it, which keeps 32 k + 1 on the grid, else int(n * scale)."""
    offset = 1 if align_corners else 0
    return tuple(int((n - offset) * scale + offset) for n in size)


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], align_corners: bool, scale: float | None = None
) -> jax.Array:
    """Bilinear resizing of [B, h, w, C] to [B, *size, C], as two small matrix products.

    Args:
      x: any float dtype; interpolated in it.
      size: wanted (height, width).
      align_corners: True maps corner pixel centres onto each other (TensorFlow's DeepLab);
        False maps image edges onto each other (half-pixel centres, PyTorch's default). Neither
        smooths when shrinking.
      scale: new pixels per old pixel where that is not exactly the ratio of the sizes (PyTorch's
        `scale_factor`); for half-pixel centres alone.
    """
    if x.shape[1:3] == tuple(size):
        return x
    rows = _interpolation(x.shape[1], size[0], align_corners, scale, x.dtype)
    columns = _interpolation(x.shape[2], size[1], align_corners, scale, x.dtype)
    batch, height, _, channels = x.shape
    # Columns first, while the array is small (the product is transposed back), then rows as one
    # product an image over [w * C], which needs no transposing.
    # HIGHEST: interpolation in TF32 would show as blocks in the logits on GPU.
    x = jnp.einsum("Ww,bhwc->bhWc", columns, x, precision=lax.Precision.HIGHEST)
    rows = jnp.broadcast_to(rows, (batch, *rows.shape))
    x = jnp.matmul(rows, x.reshape(batch, height, -1), precision=lax.Precision.HIGHEST)
    return x.reshape(batch, *size, channels)


def _interpolation(old: int, new: int, align_corners: bool, scale, dtype) -> jax.Array:
    """[new, old] matrix whose rows weigh the two nearest old samples."""
    position = jnp.arange(new, dtype=at_least_float32(dtype))
    if align_corners:
        position = position * ((old - 1) / max(new - 1, 1))
    else:
        position = (position + 0.5) * (1 / scale if scale else old / new) - 0.5
    position = jnp.clip(position, 0, old - 1)
    return jnp.maximum(
        0, 1 - jnp.abs(position[:, None] - jnp.arange(old, dtype=position.dtype))
    ).astype(dtype)
