"""Strided windows on an array and back: what the rewritten forms of CPU are made of."""

from collections.abc import Callable

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


def gather_strided(
    dy: jax.Array,
    gradient: Callable[[int, int], jax.Array],
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: Padding,
) -> jax.Array:
    """The input's gradient [B, *size, C] of an operation on strided windows.

    Pixel i of the input is seen by place u of output a where i = stride * a + u - padding.
    The pixels of one phase, i modulo stride, share their places, so each phase is a sum of shifted
    arrays; the phases are then interleaved. Spreading each array over the input's grid instead
    would add stride * stride times as many numbers, most of them zeros.

    Args:
      dy: the output's gradient [B, H', W', C].
      gradient: (u, v) → the part of dy, of its shape, that goes to place (u, v).
      size: (height, width) of the input.
      kernel: (height, width) of the window in places.
      stride: of the windows.
      padding: of the input.
    """
    length = tuple(-(-n // stride) for n in size)
    rows = [_places(p, kernel[0], stride, padding[0][0]) for p in range(stride)]
    columns = [_places(p, kernel[1], stride, padding[1][0]) for p in range(stride)]

    def phase(row, column):
        total = jnp.zeros((dy.shape[0], *length, dy.shape[3]), dy.dtype)
        for u, down in row:
            for v, across in column:
                pads = (
                    (-down, length[0] - dy.shape[1] + down),
                    (-across, length[1] - dy.shape[2] + across),
                )
                total = total + pad(gradient(u, v), pads)
        return total

    if stride == 1:
        return phase(rows[0], columns[0])
    x = jnp.stack(
        [jnp.stack([phase(row, column) for column in columns], axis=3) for row in rows], axis=2
    )  # [B, h, stride, w, stride, C]
    x = x.reshape(x.shape[0], length[0] * stride, length[1] * stride, x.shape[-1])
    return x[:, : size[0], : size[1]]


def _places(phase, kernel, stride, padding) -> list[tuple[int, int]]:
    """[(u, shift)]: place u of output m + shift sees input stride * m + phase."""
    offsets = [(u, phase + padding - u) for u in range(kernel)]
    return [(u, offset // stride) for u, offset in offsets if offset % stride == 0]
