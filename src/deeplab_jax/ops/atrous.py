"""Dense atrous convolution of stride 1 on CPU, without the taps that fall into the padding.

At the rates of an ASPP most of a 3x3 filter's taps read padding, and XLA's own form not only
multiplies these zeros but slows down as the rate grows. Two other forms, and a gradient for each:

- valid taps: the output falls into regions (at most 3 x 3 for a 3x3 filter) that see the same taps;
  each region is a sum of matrix products over just those.
- one product: all taps of all pixels as one large matrix product, then shifted additions. It
  multiplies as much as the plain form but copies no input, which pays where the input has many
  more channels than the output.
"""

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import Padding, output_size
from deeplab_jax.ops.windows import pad


def share_inside(x_shape, kernel_shape, rate: tuple[int, int], padding: Padding) -> float:
    """The share of all taps of all outputs that does not fall into the padding."""
    share = 1.0
    for axis in zip(x_shape[1:3], kernel_shape, rate, padding):
        reads = sum(stop - start for start, stop, _ in _taps(*axis))
        share *= reads / (axis[1] * output_size(*axis))
    return share


def _taps(size, kernel, rate, padding) -> list[tuple[int, int, int]]:
    """(start, stop, shift) a tap: outputs start..stop read inside, each at its place + shift."""
    output = output_size(size, kernel, rate, padding)
    taps = []
    for tap in range(kernel):
        shift = tap * rate - padding[0]
        start = min(max(-shift, 0), output)
        taps.append((start, max(start, min(size - shift, output)), shift))
    return taps


def _regions(taps, output) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Cuts 0..output where the set of taps that read inside changes.

    Yields (start, stop, [(tap, shift), ...]).
    """
    cuts = sorted({0, output, *(start for start, *_ in taps), *(stop for _, stop, _ in taps)})
    for start, stop in itertools.pairwise(cuts):
        seen = [(i, tap[2]) for i, tap in enumerate(taps) if tap[0] <= start and stop <= tap[1]]
        yield start, stop, seen


def _window(x, top, left, height, width):
    return x[:, top : top + height, left : left + width]


def _dot(x, kernel):
    """[B, h, w, I] x [I, O] → [B, h, w, O]."""
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


# --- valid taps -------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def valid_taps(x: jax.Array, kernel: jax.Array, rate: tuple[int, int], padding: Padding):
    """x [B, H, W, I], kernel [kh, kw, I, O] → [B, H', W', O]."""
    axes = list(zip(x.shape[1:3], kernel.shape, rate, padding))
    rows, columns = (_taps(*axis) for axis in axes)
    height, width = (output_size(*axis) for axis in axes)
    features = kernel.shape[3]
    bands = []
    for top, bottom, row_taps in _regions(rows, height):
        band = []
        for left, right, column_taps in _regions(columns, width):
            shape = (x.shape[0], bottom - top, right - left, features)
            # Written out: the product would read a strided view row by row.
            seen = [
                lax.optimization_barrier(_window(x, top + down, left + across, *shape[1:3]))
                for _, down in row_taps
                for _, across in column_taps
            ]
            taps = [kernel[u, v] for u, _ in row_taps for v, _ in column_taps]
            products = [_dot(view, tap) for view, tap in zip(seen, taps)]
            band.append(sum(products) if products else jnp.zeros(shape, x.dtype))
        bands.append(jnp.concatenate(band, axis=2))
    return jnp.concatenate(bands, axis=1)


def _valid_taps_fwd(x, kernel, rate, padding):
    return valid_taps(x, kernel, rate, padding), (x, kernel)


def _valid_taps_bwd(rate, padding, residuals, dy):
    x, kernel = residuals
    dy = lax.optimization_barrier(dy)  # as in `_pointwise_bwd`
    # The input's gradient is dy through the mirrored kernel, whose padding is the complement.
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    spans = [(k - 1) * r for k, r in zip(kernel.shape, rate)]
    complement = tuple(tuple(span - p for p in pads) for span, pads in zip(spans, padding))
    dx = valid_taps(dy, mirrored, rate, complement)
    rows = _taps(x.shape[1], kernel.shape[0], rate[0], padding[0])
    columns = _taps(x.shape[2], kernel.shape[1], rate[1], padding[1])
    taps = []
    for top, bottom, down in rows:
        for left, right, across in columns:
            size = (bottom - top, right - left)
            seen = _window(x, top + down, left + across, *size).reshape(-1, x.shape[3])
            taps.append(seen.T @ _window(dy, top, left, *size).reshape(-1, dy.shape[3]))
    return dx, jnp.stack(taps).reshape(kernel.shape)


valid_taps.defvjp(_valid_taps_fwd, _valid_taps_bwd)


# --- one product ------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def one_product(x: jax.Array, kernel: jax.Array, rate: tuple[int, int], padding: Padding):
    """x [B, H, W, I], kernel [kh, kw, I, O] → [B, H', W', O]."""
    kh, kw, _, features = kernel.shape
    # Written out: fused into the additions, the product would be a slow loop.
    taps = lax.optimization_barrier(_dot(x, _side_by_side(kernel)))
    total = 0
    for i, pads in enumerate(_shifts(x.shape, (kh, kw), rate, padding)):
        total = total + pad(taps[..., i * features : (i + 1) * features], pads)
    return total


def _one_product_fwd(x, kernel, rate, padding):
    return one_product(x, kernel, rate, padding), (x, kernel)


def _one_product_bwd(rate, padding, residuals, dy):
    x, kernel = residuals
    kh, kw, inputs, features = kernel.shape
    back = [
        tuple((-low, -high) for low, high in pads)
        for pads in _shifts(x.shape, (kh, kw), rate, padding)
    ]
    taps = lax.optimization_barrier(jnp.concatenate([pad(dy, pads) for pads in back], axis=-1))
    dx = lax.dot_general(taps, _side_by_side(kernel), (((3,), (1,)), ((), ())))
    dkernel = x.reshape(-1, inputs).T @ taps.reshape(-1, kh * kw * features)
    return dx, dkernel.reshape(inputs, kh, kw, features).transpose(1, 2, 0, 3)


one_product.defvjp(_one_product_fwd, _one_product_bwd)


def _side_by_side(kernel):
    """[kh, kw, I, O] → [I, kh * kw * O]."""
    return kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)


def _shifts(x_shape, kernel, rate, padding) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Padding (negative: cropping) that moves each tap's [B, H, W, O] onto the output's grid."""
    axes = []
    for axis in (0, 1):
        size, span = x_shape[axis + 1], (kernel[axis], rate[axis], padding[axis])
        grow = output_size(size, *span) - size
        axes.append([(-shift, grow + shift) for *_, shift in _taps(size, *span)])
    return [(down, across) for down in axes[0] for across in axes[1]]
