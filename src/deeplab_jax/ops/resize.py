"""Resizing: bilinear for images and logits, nearest for labels."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import max_dim  # of integers, and of the symbols of an export

from deeplab_jax.ops.geometry import at_least_float32


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


def resize_nearest(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """The nearest samples of [B, h, w, ...] as [B, *size, ...]: any dtype, no new values."""
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (
        jnp.floor(_positions(old, new, align_corners, None, jnp.float32) + 0.5).astype(jnp.int32)
        for old, new in zip(x.shape[1:3], size)
    )
    return x[:, rows[:, None], columns[None, :]]


def _positions(old: int, new: int, align_corners: bool, scale, dtype) -> jax.Array:
    """Where the new samples lie on the old grid."""
    position = jnp.arange(new, dtype=dtype)
    if align_corners:
        position = position * ((old - 1) / max_dim(new - 1, 1))
    else:
        position = (position + 0.5) * (1 / scale if scale else old / new) - 0.5
    return jnp.clip(position, 0, old - 1)


def _interpolation(old: int, new: int, align_corners: bool, scale, dtype) -> jax.Array:
    """[new, old] matrix whose rows weigh the two nearest old samples."""
    position = _positions(old, new, align_corners, scale, at_least_float32(dtype))
    return jnp.maximum(
        0, 1 - jnp.abs(position[:, None] - jnp.arange(old, dtype=position.dtype))
    ).astype(dtype)


def upsample_twice(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution of stride 2: x [B, h, w, I], kernel [4, 4, I, O] → [B, 2 h, 2 w, O].

    What lies beyond x is taken as its border.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((0, 0), (0, 0)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
    )
