"""The two Gaussian kernels as functions of what the pixels send: [N, C] → [N, C]."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LLOYD_STEPS = 2
exactly = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class Keys(NamedTuple):
    """What pixels are gathered into: M Gaussians in the scaled space (y, x, r, g, b).

    Attributes:
      mean: [M, 5].
      precision: [M, 5], 1 / (1 + variance).
      height: [M], the kernel's value at the mean, sqrt of the precisions' product.
      mass: [M, 1], how many pixels.
      of: [N] int32, the key of each pixel.
    """

    mean: jax.Array
    precision: jax.Array
    height: jax.Array
    mass: jax.Array
    of: jax.Array


class Potential(NamedTuple):
    """A pairwise term.

    Attributes:
      kernel: [N, C] → [N, C].
      lend: what was heard [N, C] → what it adds to the logits [N, C].
      normalization: of `norms`.
    """

    kernel: Callable[[jax.Array], jax.Array]
    lend: Callable[[jax.Array], jax.Array]
    normalization: str = "symmetric"


def norms(potential: Potential, degree, present):
    """What a pixel's sending and its hearing are multiplied by, (before, after), [N, 1] each.

    The papers' normalisation is symmetric: n K n with n = (K 1)^-1/2.

    Args:
      potential: its normalization, "symmetric", "before", "after" or "none".
      degree: K 1, [N, 1].
      present: [N, 1], 0 for padding.
    """
    # K 1 >= 1, as a pixel hears itself: an approximation may forget that.
    whole = 1 / jnp.maximum(degree, 1)
    before, after = {
        "symmetric": (jnp.sqrt(whole), jnp.sqrt(whole)),
        "before": (whole, 1.0),
        "after": (1.0, whole),
        "none": (1.0, 1.0),
    }[potential.normalization]
    return present * before, present * after


def update(logits, q, potentials, scales):
    """One iteration of all pixels, in parallel: Q [N, C] → Q [N, C]; `scales` are `norms`'."""
    for potential, (before, after) in zip(potentials, scales):
        logits = logits + potential.lend(after * potential.kernel(before * q))
    return jax.nn.softmax(logits)


def scaled_points(image, sigma_alpha, sigma_beta):
    """[H, W, 3] → [H, W, 5]: (y, x) / sigma_alpha and colours / sigma_beta."""
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    sigma_alpha, sigma_beta = (jnp.asarray(s, jnp.float32) for s in (sigma_alpha, sigma_beta))
    place = jnp.stack([y, x], axis=-1).astype(jnp.float32) / sigma_alpha
    colour = image.astype(jnp.float32) / sigma_beta
    return jnp.concatenate([place, colour], axis=-1)


def smoothness(height: int, width: int, sigma):
    """K2: a product of one kernel of rows and one of columns. `sigma` in px, or one for (y, x)."""

    def along(n, sigma):
        distance = jnp.arange(n)[:, None] - jnp.arange(n)
        return jnp.exp(-0.5 * (distance.astype(jnp.float32) / sigma) ** 2)

    sigma = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), (2,))
    rows, columns = along(height, sigma[0]), along(width, sigma[1])

    def apply(values):
        channels = values.shape[1]
        values = exactly(rows, values.reshape(height, width * channels))
        values = exactly(columns, values.reshape(height, width, channels))
        return values.reshape(height * width, channels)

    return apply


# --- the appearance kernel ---------------------------------------------------------------------


def appearance(points, keys: Keys, memory: float):
    """K1 between points [N, 5], through keys."""
    return through(keys, listener(points, keys, memory), points)


def through(keys: Keys, hear, places):
    """A kernel [N, C] → [N, C] by way of keys: each pixel sends to its key, and `hear`, [M, C] →
    [N, C], is what all keys together sound like at the pixels' `places` [N, 5]."""
    itself = 1 - heard_of_itself(places, keys)

    def apply(values):
        return hear(jax.ops.segment_sum(values, keys.of, len(keys.mean))) + itself * values

    return apply


def pixel_keys(points) -> Keys:
    """Every point [N, 5] a key of its own, without spread: the exact kernel."""
    ones = jnp.ones_like(points)
    return Keys(points, ones, ones[:, 0], ones[:, :1], jnp.arange(len(points), dtype=jnp.int32))


def mode_keys(points, mask, tile, count: int, thin: int = 1, steps: int = LLOYD_STEPS) -> Keys:
    """Clusters, `count` in each tile, (height, width) px, of points [H, W, 5] inside mask [H, W].

    Keys are numbered tile by tile, row by row. The rest is `clusters`'.
    """
    height, width, _ = points.shape
    down, across = -(-height // tile[0]), -(-width // tile[1])
    count = min(count, tile[0] * tile[1])
    find = jax.vmap(partial(clusters, count=count, thin=thin, steps=steps))
    # Which pixels belong together has no gradient; what they then are has.
    of = find(lax.stop_gradient(_tiles(points, tile)), _tiles(mask, tile))
    of += count * jnp.arange(down * across, dtype=jnp.int32)[:, None]
    of = of.reshape(down, across, *tile).swapaxes(1, 2)
    of = of.reshape(down * tile[0], across * tile[1])[:height, :width].reshape(-1)
    mass = mask.reshape(-1, 1).astype(jnp.float32)
    points = points.reshape(-1, 5)
    return gathered(points, jnp.zeros_like(points), mass, of, down * across * count)


def _tiles(x, tile):
    """[H, W, ...] → [tiles, pixels of a tile, ...], padded with zeros, tiles row by row."""
    pads = [(0, -n % side) for n, side in zip(x.shape, tile)]
    x = jnp.pad(x, pads + [(0, 0)] * (x.ndim - 2))
    down, across = (n // side for n, side in zip(x.shape, tile))
    x = x.reshape(down, tile[0], across, tile[1], *x.shape[2:]).swapaxes(1, 2)
    return x.reshape(down * across, tile[0] * tile[1], *x.shape[4:])


def gathered(mean, variance, mass, of, count: int) -> Keys:
    """Gaussians [n, 5] of some mass [n, 1], gathered by `of` [n] into `count` of like moments."""
    total = partial(jax.ops.segment_sum, segment_ids=of, num_segments=count)
    masses = total(mass)
    share = mass / jnp.maximum(masses, 1e-6)[of]
    centre = total(share * mean)
    spread = total(share * (variance + (mean - centre[of]) ** 2))
    precision = 1 / (1 + spread)
    return Keys(centre, precision, jnp.sqrt(jnp.prod(precision, axis=1)), masses, of)


def clusters(points, inside, count: int, thin: int, steps: int):
    """Points [P, 5], inside [P] bool → [P] int32 in 0..count-1.

    Seeds far from each other, each the farthest from those before, among every `thin`-th point;
    then steps of Lloyd's on those.
    """
    choice, eligible = points[::thin], inside[::thin]

    def seed(i, state):
        nearest, seeds = state
        nearest = jnp.minimum(nearest, _squared(choice, choice[seeds[i - 1]]))
        return nearest, seeds.at[i].set(jnp.argmax(jnp.where(eligible, nearest, -1)))

    start = jnp.full(len(choice), jnp.inf), jnp.full(count, jnp.argmax(eligible))
    _, seeds = lax.fori_loop(1, count, seed, start)
    centres = choice[seeds]
    for _ in range(steps):
        weight = eligible.astype(jnp.float32)[:, None]
        total = partial(jax.ops.segment_sum, segment_ids=_nearest(choice, centres))
        mass = total(weight, num_segments=count)
        mean = total(weight * choice, num_segments=count) / jnp.maximum(mass, 1)
        centres = jnp.where(mass > 0, mean, centres)
    return _nearest(points, centres)


def _squared(points, centre):
    """|points [P, 5] - centre [5]|^2, [P]: a sum of planes, along which CPUs have vectors."""
    return sum((points[:, d] - centre[d]) ** 2 for d in range(5))


def _nearest(points, centres):
    """The number of the centre [K, 5] nearest to each point [P, 5], [P] int32."""

    # Centre by centre: XLA's argmin takes six times as long on a CPU.
    def compare(i, state):
        nearest, of = state
        distance = _squared(points, centres[i])
        return jnp.minimum(nearest, distance), jnp.where(distance < nearest, i, of)

    start = jnp.full(len(points), jnp.inf), jnp.zeros(len(points), jnp.int32)
    return lax.fori_loop(0, len(centres), compare, start)[1]


def kernel(keys: Keys, points, rows: bool = False):
    """Of all keys and points [n, 5]: the Gaussian kernel averaged over each key, [M, n].

    With `rows` [n, M]: of two sizes the longer one belongs last, that is what CPUs vectorise.
    """

    def of_key(x):
        return x if rows else x[:, None]

    def of_point(x):
        return x[:, None] if rows else x

    exponent = 0.0
    for d in range(5):  # differences, not squares of norms: those cancel, with an error of 1e-3
        difference = of_point(points[:, d]) - of_key(keys.mean[:, d])
        exponent += of_key(keys.precision[:, d]) * difference**2
    return of_key(keys.height) * jnp.exp(-0.5 * exponent)


def heard_of_itself(points, keys: Keys):
    """[N, 1]: the kernel between points [N, 5] and the keys of the pixels in the same order.

    What a pixel hears of itself is 1, not what is left of it in its key.
    """
    exponent = keys.precision[keys.of] * (points - keys.mean[keys.of]) ** 2
    return (keys.height[keys.of] * jnp.exp(-0.5 * exponent.sum(1)))[:, None]


def listener(points, keys: Keys, memory: float):
    """A function: sent by each key [M, C] → heard at each point [n, C].

    Past `memory` bytes the kernel is computed anew at every call, in blocks.
    """
    count, size = len(points), len(keys.mean)

    if 4 * count * size <= memory:
        seen = kernel(keys, points)
        return lambda sent: exactly(sent.T, seen).T
    block = max(1, min(count, int(memory / 8 / (4 * size))))
    blocks = -(-count // block)
    rows = jnp.pad(points, ((0, blocks * block - count), (0, 0))).reshape(blocks, block, 5)

    def in_blocks(sent):
        one = jax.checkpoint(lambda part: exactly(kernel(keys, part, rows=True), sent))
        return lax.map(one, rows).reshape(blocks * block, -1)[:count]

    return in_blocks
