"""Depthwise atrous convolution, in the form that is fast on each platform."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import pair
from deeplab_jax.ops.windows import gather_strided, pad, window


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
    """Gradient of the input: at stride 1 the convolution of dy with the mirrored kernel."""
    if stride > 1:
        dy = lax.optimization_barrier(dy)
        size = kernel.shape[:2]
        return gather_strided(
            dy, lambda u, v: dy * kernel[u, v], x_shape[1:3], size, rate, stride, padding
        )
    spans = [(k - 1) * r for k, r in zip(kernel.shape, rate)]
    complement = tuple(tuple(span - p for p in pads) for span, pads in zip(spans, padding))
    return _depthwise_shifted(dy, kernel[::-1, ::-1], 1, rate, complement)


def _depthwise_shifted_dkernel(x, kernel, dy, stride, rate, padding):
    """Gradient of the kernel, one output row a scan step.

    All rows of a tap at once would fuse nine strided reads into one slow loop; row by row the
    operands stay in cache (5.6 ms against 31 ms at [4, 33, 33, 728]).
    """
    x = pad(x, padding).astype(jnp.float32)
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
                seen = x_row[:, left : left + (width - 1) * stride + 1 : stride]
                taps.append(jnp.sum(seen * dy_row, axis=(0, 1)))
        return total + jnp.stack(taps), None

    zeros = jnp.zeros((kh * kw, x.shape[-1]), jnp.float32)
    total, _ = lax.scan(row, zeros, jnp.arange(dy.shape[1]))
    return total.reshape(kernel.shape).astype(kernel.dtype)
