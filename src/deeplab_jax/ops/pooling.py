"""Pooling."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import Padding, at_least_float32
from deeplab_jax.ops.windows import pad, window


def max_pool(x: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    """Maximum over size x size windows of [B, H, W, C]; padding never wins.

    On CPU it is a maximum of shifted views, with a gradient of its own: XLA's window reduction is
    4 times slower forward and 19 times slower backward there. The gradient goes to the first of
    equal values, as XLA's does.
    """
    return lax.platform_dependent(
        x,
        cpu=lambda x: _max_pool_shifted(x, x.shape[1:3], size, stride, padding),
        default=lambda x: max_pool_native(x, size, stride, padding),
    )


def max_pool_native(x: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    """`max_pool` as XLA's window reduction: the form to check against."""
    sizes, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, ((0, 0), *padding, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool_shifted(x, shape, size, stride, padding):
    return functools.reduce(jnp.maximum, _views(x, size, stride, padding))


def _views(x, size, stride, padding):
    """What each place of the window sees: size * size arrays [B, H', W', C]."""
    # Written out before use: fused into the views, what made x would be computed once for each.
    x = lax.optimization_barrier(pad(x, padding, -jnp.inf))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    return [window(x, u, v, height, width, stride) for u in range(size) for v in range(size)]


def _max_pool_fwd(x, shape, size, stride, padding):
    first, *views = _views(x, size, stride, padding)
    y, place = first, jnp.zeros(first.shape, jnp.uint8)
    for i, view in enumerate(views, start=1):
        place = jnp.where(view > y, jnp.uint8(i), place)
        y = jnp.maximum(view, y)  # and not by `where`: a NaN stays one
    return y, place


def _max_pool_bwd(shape, size, stride, padding, place, dy):
    """Sends dy to the place of each window that won.

    Pixel i of the input is place u of window a where i = stride * a + u - padding. The pixels of
    one phase, i modulo stride, share their places, so each phase is a sum of shifted arrays; the
    phases are then interleaved. Spreading each array over the input's grid instead would add
    stride * stride times as many numbers, most of them zeros.
    """
    length = tuple(-(-n // stride) for n in shape)
    rows, columns = (
        [_places(phase, size, stride, before) for phase in range(stride)] for before, _ in padding
    )

    def phase(row, column):
        total = jnp.zeros((dy.shape[0], *length, dy.shape[3]), dy.dtype)
        for u, down in row:
            for v, across in column:
                won = jnp.where(place == u * size + v, dy, 0)
                shifts = zip((down, across), length, dy.shape[1:3])
                total = total + pad(won, tuple((-by, n - m + by) for by, n, m in shifts))
        return total

    x = jnp.stack(
        [jnp.stack([phase(row, column) for column in columns], axis=3) for row in rows], axis=2
    )  # [B, h, stride, w, stride, C]
    x = x.reshape(x.shape[0], length[0] * stride, length[1] * stride, x.shape[-1])
    return (x[:, : shape[0], : shape[1]],)


def _places(phase, size, stride, padding) -> list[tuple[int, int]]:
    """[(u, shift)]: place u of window m + shift sees input stride * m + phase."""
    offsets = [(u, phase + padding - u) for u in range(size)]
    return [(u, offset // stride) for u, offset in offsets if offset % stride == 0]


_max_pool_shifted.defvjp(_max_pool_fwd, _max_pool_bwd)


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
