"""Dense 3x3 convolution of stride 1 in 16 products for 4 outputs instead of 36, at any atrous rate.

Winograd's minimal filtering F(2x2, 3x3) as Lavin & Gray (arXiv:1509.09308) apply it: outputs come
in 2x2 tiles that see 4x4 tiles of the input, and in the transformed space a tile's convolution is
a product by element, which over all tiles and channels is 16 matrix products. An atrous
convolution of rate r is r * r interleaved ones, each with tiles of its own.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import Padding, output_size
from deeplab_jax.ops.windows import pad

# The transforms of one axis: input d0..d3 → Bd, kernel k0..k2 → Gk, products m → outputs Am.
_B = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A = ((1, 1, 1, 0), (0, 1, -1, -1))


def tiles(size: tuple[int, int], rate: tuple[int, int]) -> tuple[int, int]:
    """(down, across): tiles of 2x2 outputs in each of the interleaved convolutions."""
    return tuple(-(-n // (2 * r)) for n, r in zip(size, rate))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def winograd(x: jax.Array, kernel: jax.Array, rate: tuple[int, int], padding: Padding):
    """x [B, H, W, I], kernel [3, 3, I, O] → [B, H', W', O]."""
    size = tuple(map(output_size, x.shape[1:3], kernel.shape, rate, padding))
    places = _input_transform(x, size, rate, padding)
    return _output_transform(_products(places, _kernel_transform(kernel), 0), size)


def _winograd_fwd(x, kernel, rate, padding):
    return winograd(x, kernel, rate, padding), (x, kernel)


def _winograd_bwd(rate, padding, residuals, dy):
    """Both gradients in the transformed space, too: 16 products each."""
    x, kernel = residuals
    dy = lax.optimization_barrier(dy)  # as in `_pointwise_bwd`
    # The input's gradient is dy through the mirrored kernel, whose padding is the complement.
    # Mirroring trades the first and last row of _G for each other.
    complement = tuple(tuple(2 * r - p for p in pads) for r, pads in zip(rate, padding))
    mirrored = [[row[v] for v in (3, 1, 2, 0)] for row in _kernel_transform(kernel)]
    mirrored = [mirrored[u] for u in (3, 1, 2, 0)]
    places = _input_transform(dy, x.shape[1:3], rate, complement)
    dx = _output_transform(_products(places, mirrored, 1), x.shape[1:3])

    seen = _input_transform(x, dy.shape[1:3], rate, padding)
    moved = _output_transform_transposed(dy, rate)
    dtaps = [
        [lax.optimization_barrier(_flat(a).T @ _flat(b)) for a, b in zip(*rows)]
        for rows in zip(seen, moved)
    ]
    back = tuple(zip(*_G))
    dkernel = _two_axes(back, dtaps)
    return dx, jnp.stack([jnp.stack(row) for row in dkernel])


winograd.defvjp(_winograd_fwd, _winograd_bwd)


def _two_axes(matrix, places):
    """matrix · places · matrix' of a list of lists of arrays."""
    rows = [[_combine(m, column) for column in zip(*places)] for m in matrix]
    return [[_combine(m, row) for m in matrix] for row in rows]


def _kernel_transform(kernel):
    """GkG' as a 4 by 4 list of [I, O]."""
    rows = [[_combine(g, kernel[:, v]) for v in range(3)] for g in _G]
    return [[lax.optimization_barrier(_combine(g, row)) for g in _G] for row in rows]


def _products(places, taps, axis):
    """A matrix product a place; `axis` of the tap is summed over."""
    return [
        [
            lax.optimization_barrier(lax.dot_general(seen, tap, (((5,), (axis,)), ((), ()))))
            for seen, tap in zip(*rows)
        ]
        for rows in zip(places, taps)
    ]


def _output_transform(products, size):
    """AmA' [B, *size, O] of a 4 by 4 list of [B, th, r, tw, r, O]."""
    outputs = _two_axes(_A, products)
    y = jnp.stack([jnp.stack(row, axis=4) for row in outputs], axis=2)
    batch, th, _, rh, tw, _, rw, features = y.shape
    y = y.reshape(batch, th * 2 * rh, tw * 2 * rw, features)
    return y[:, : size[0], : size[1]]


def _input_transform(x, size, rate, padding):
    """BxB' as a 4 by 4 list of [B, th, rh, tw, rw, I]: each place of the 4x4 tiles."""
    (th, tw), (rh, rw) = tiles(size, rate), rate
    ends = [2 * r * (t + 1) for t, r in zip((th, tw), rate)]
    pads = [(low, end - n - low) for (low, _), end, n in zip(padding, ends, x.shape[1:3])]
    x = pad(x, tuple(pads))
    x = x.reshape(x.shape[0], th + 1, 2, rh, tw + 1, 2, rw, x.shape[3])
    rows = [x[:, i // 2 : th + i // 2, i % 2] for i in range(4)]  # [B, th, r, tw + 1, 2, r, I]
    by_row = [lax.optimization_barrier(_combine(b, rows)) for b in _B]
    by_place = []
    for row in by_row:
        columns = [row[:, :, :, j // 2 : tw + j // 2, j % 2] for j in range(4)]
        by_place.append([lax.optimization_barrier(_combine(b, columns)) for b in _B])
    return by_place


def _output_transform_transposed(dy, rate):
    """A'dyA as a 4 by 4 list of [B, th, r, tw, r, O]."""
    size = dy.shape[1:3]
    (th, tw), (rh, rw) = tiles(size, rate), rate
    dy = pad(dy, tuple((0, 2 * r * t - n) for t, r, n in zip((th, tw), rate, size)))
    dy = dy.reshape(dy.shape[0], th, 2, rh, tw, 2, rw, dy.shape[3])
    a_transposed = tuple(zip(*_A))
    by_place = []
    for row in a_transposed:
        seen = lax.optimization_barrier(_combine(row, [dy[:, :, i] for i in range(2)]))
        columns = [seen[:, :, :, :, j] for j in range(2)]
        by_place.append([lax.optimization_barrier(_combine(a, columns)) for a in a_transposed])
    return by_place


def _combine(coefficients, arrays):
    """Sum of the arrays by coefficient, of which most are 0, 1 or -1."""
    total = None
    for c, array in zip(coefficients, arrays):
        if c:
            term = array if c == 1 else -array if c == -1 else c * array
            total = term if total is None else total + term
    return total


def _flat(x):
    return x.reshape(-1, x.shape[-1])
