"""Depthwise atrous convolution, in the form that is fast on each platform."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import at_least_float32, pair
from deeplab_jax.ops.windows import pad, window


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise(x, kernel, stride, rate, padding):
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, k: _depthwise_shifted(x, k, stride, rate, padding),
        default=lambda x, k: depthwise_native(x, k, stride, rate, padding),
    )


def _depthwise_fwd(x, kernel, stride, rate, padding):
    return depthwise(x, kernel, stride, rate, padding), (x, kernel)


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


depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


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
    x = lax.optimization_barrier(pad(x, padding))
    (kh, kw, _), (rate_h, rate_w) = kernel.shape, rate
    height = (x.shape[1] - (kh - 1) * rate_h - 1) // stride + 1
    width = (x.shape[2] - (kw - 1) * rate_w - 1) // stride + 1
    return sum(
        window(x, i * rate_h, j * rate_w, height, width, stride) * kernel[i, j]
        for i in range(kh)
        for j in range(kw)
    )


def _depthwise_shifted_dx(x_shape, kernel, dy, stride, rate, padding):
    """Gradient of the input: dy, spread to the input's grid, through the mirrored kernel."""
    spread = []
    for axis in (1, 2):
        span = (kernel.shape[axis - 1] - 1) * rate[axis - 1]
        low = span - padding[axis - 1][0]
        # As many samples as the input has, whatever the stride left unread at its end.
        high = x_shape[axis] + span - low - ((dy.shape[axis] - 1) * stride + 1)
        spread.append((low, high, stride - 1))
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    return _depthwise_shifted(dy, kernel[::-1, ::-1], 1, rate, ((0, 0), (0, 0)))


# Bytes of dy in a step of the scan below: few steps, and all that one touches stays in cache.
_STEP_BYTES = 600_000


def _depthwise_shifted_dkernel(x, kernel, dy, stride, rate, padding):
    """Gradient of the kernel, some output rows a scan step.

    All rows at once would read x and dy nine times from memory: 12 ms against 6 at
    [4, 33, 33, 728]; row by row, small maps would be all overhead (1.7 ms against 1.1 at
    [2, 17, 17, 728]).
    """
    (kh, kw, _), (rate_h, rate_w) = kernel.shape, rate
    batch, height, width, channels = dy.shape
    steps = -(-height // -(-_STEP_BYTES // (4 * batch * width * channels)))
    rows = -(-height // steps)
    more = steps * rows - height  # zeros in dy, whatever stands beside them in x
    (top, bottom), sides = padding
    wide = at_least_float32(x.dtype)
    x = pad(x, ((top, bottom + more * stride), sides)).astype(wide)
    dy = pad(dy, ((0, more), (0, 0))).astype(wide)

    def step(total, i):
        dy_rows = lax.dynamic_slice_in_dim(dy, i * rows, rows, axis=1)  # [B, rows, W', C]
        taps = []
        for u in range(kh):
            first = i * rows * stride + u * rate_h
            x_rows = lax.dynamic_slice_in_dim(x, first, (rows - 1) * stride + 1, axis=1)
            taps += [
                jnp.sum(window(x_rows, 0, v * rate_w, rows, width, stride) * dy_rows, (0, 1, 2))
                for v in range(kw)
            ]
        return total + jnp.stack(taps), None

    zeros = jnp.zeros((kh * kw, channels), wide)
    total, _ = lax.scan(step, zeros, jnp.arange(steps))
    return total.reshape(kernel.shape).astype(kernel.dtype)
