"""Convolutions as the layers call them, and the hook that counts them."""

import contextlib
import functools
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops import atrous, winograd
from deeplab_jax.ops.depthwise import depthwise
from deeplab_jax.ops.geometry import Padding, Rate, output_size, pair
from deeplab_jax.ops.stem import pixel_pairs


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
    native = functools.partial(dense_native, stride=stride, rate=rate, padding=padding)
    if not all(isinstance(size, int) for size in x.shape):
        return native(x, kernel)  # an export's symbols: what is fastest depends on the sizes
    if stride == 2 and kernel.shape[:2] == (3, 3) and kernel.shape[2] <= 4 and pair(rate) == (1, 1):
        rewritten = functools.partial(pixel_pairs, padding=padding, native=native)
    elif stride == 1 and (form := cpu_form(x.shape, kernel.shape, pair(rate), padding, x.dtype)):
        rewritten = functools.partial(form, rate=pair(rate), padding=padding)
    else:
        return native(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=rewritten, default=native)


_WORTH_COMPILING = 50_000_000  # multiply-adds: a quarter of a millisecond on two cores


def cpu_form(x, kernel, rate: tuple[int, int], padding: Padding, dtype) -> Callable | None:
    """The fastest form of a convolution of stride 1 on CPU, by benchmarks/NOTES.md.

    Args:
      x, kernel: shapes [B, H, W, I], [kh, kw, I, O].
      rate, padding, dtype: of the convolution.

    Returns:
      `winograd`, `atrous.valid_taps`, `atrous.one_product`, or None for XLA's own.
    """
    inputs, features = kernel[2:]
    inside = atrous.share_inside(x, kernel, rate, padding)
    size = tuple(map(output_size, x[1:3], kernel, rate, padding))
    # Products of a pixel or tile with a tap. Winograd's differences would lose bfloat16's few
    # digits; transforming its kernel takes the time of some 32 tiles, compiling it a second.
    if kernel[:2] == (3, 3) and min(inputs, features) >= 32 and jnp.dtype(dtype).itemsize >= 4:
        tiles = x[0] * math.prod(winograd.tiles(size, rate)) * math.prod(rate)
        saved = 0.9 * inside * 9 * x[0] * math.prod(size) - 16 * (tiles + 32)
        if saved * inputs * features > _WORTH_COMPILING:
            return winograd.winograd
    if rate == (1, 1):
        return None
    # A 7x7 filter falls into 169 regions: too much to compile.
    if inputs < 16 * features and inside < 0.85 and math.prod(kernel[:2]) <= 16:
        return atrous.valid_taps
    return atrous.one_product if inputs >= 4 * features else None


def dense_native(x, kernel, stride: int, rate: Rate, padding: Padding) -> jax.Array:
    """`conv2d` as XLA's convolution: the form to check against."""
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
    return dx, lax.platform_dependent(x, dy, cpu=_over_rows, default=_over_pixels)


def _over_rows(x, dy):
    """Sum over pixels of x dy' [I, O]; on CPU a tenth or more faster so than `_over_pixels`."""
    return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


def _over_pixels(x, dy):
    """The same; as one axis of pixels, images split over their height would have to be gathered."""
    pixels = (0, 1, 2)
    return lax.dot_general(x, dy, ((pixels, pixels), ((), ())))


_pointwise.defvjp(_pointwise_fwd, _pointwise_bwd)


@_observed
def depthwise_conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, rate: Rate, padding: Padding
) -> jax.Array:
    """Depthwise atrous convolution. x [B, H, W, C], kernel [kh, kw, C] → [B, H', W', C].

    On CPU it is a sum of shifted products with a gradient of its own: XLA's grouped convolution
    is 10 to 40 times slower there. Other platforms take the grouped convolution.
    """
    return depthwise(x, kernel, stride, pair(rate), padding)
