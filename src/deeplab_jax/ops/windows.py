"""Padding and strided views: what the rewritten forms of CPU are made of."""

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import Padding


def pad(x: jax.Array, padding: Padding, value: float = 0) -> jax.Array:
    """Pads [B, H, W, C]; a negative number crops."""
    pads = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return lax.pad(x, jnp.asarray(value, x.dtype), pads)


def window(x: jax.Array, top: int, left: int, height: int, width: int, stride: int) -> jax.Array:
    """[B, H, W, C] → [B, height, width, C]: every stride-th pixel from (top, left) on."""
    return lax.slice(
        x,
        (0, top, left, 0),
        (x.shape[0], top + (height - 1) * stride + 1, left + (width - 1) * stride + 1, x.shape[3]),
        (1, stride, stride, 1),
    )
