"""Pooling."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import Padding, at_least_float32
from deeplab_jax.ops.windows import gather_strided, pad, window


def max_pool(x: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    """Maximum over size x size windows of [B, H, W, C]; padding never wins.

    On CPU it is a maximum of shifted views, with a gradient of its own: XLA's window reduction is
    4 times slower forward and 19 times slower backward there. The gradient goes to the first of
    equal values, as XLA's does.
    """
    return lax.platform_dependent(
        x,
        cpu=lambda x: _max_pool_shifted(x, x.shape[1:3], size, stride, padding),
        default=lambda x: lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            (1, size, size, 1),
            (1, stride, stride, 1),
            ((0, 0), *padding, (0, 0)),
        ),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool_shifted(x, shape, size, stride, padding):
    return functools.reduce(jnp.maximum, _views(x, size, stride, padding))


def _views(x, size, stride, padding):
    """What each place of the window sees: size * size arrays [B, H', W', C]."""
    x = lax.optimization_barrier(
        pad(x, padding, -jnp.inf)
    )  # else what made x would be computed once a view
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
    return (
        gather_strided(
            dy,
            lambda u, v: jnp.where(place == u * size + v, dy, 0),
            shape,
            (size, size),
            stride,
            padding,
        ),
    )


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
