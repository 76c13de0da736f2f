"""Mean field, over any kernels."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.crf import fast, kernels

METHODS = ("modes", "exact", "fast")
# sigma_beta from which colours are blurred so far that coarser modes do; (px, modes) of a tile.
WIDE, COARSE, FINE = 8.0, (32, 128), (16, 64)
_TINY = 1e-20


class Potential(NamedTuple):
    """A pairwise term.

    Attributes:
      kernel: [N, C] → [N, C].
      before, after: [N, 1], the normalisation of what is sent and of what is heard.
      lend: what was heard [N, C] → what it adds to the logits [N, C].
    """

    kernel: Callable[[jax.Array], jax.Array]
    before: jax.Array
    after: jax.Array
    lend: Callable[[jax.Array], jax.Array]


def mean_field(
    image: jax.Array,
    probs: jax.Array,
    *,
    w1: Any = 4.0,
    sigma_alpha: Any = 65.0,
    sigma_beta: Any = 3.0,
    w2: Any = 3.0,
    sigma_gamma: Any = 3.0,
    iterations: int = 10,
    method: str | None = None,
    compatibility: jax.Array | None = None,
    mask: jax.Array | None = None,
    tile: int | None = None,
    modes: int | None = None,
    memory: float = 1e9,
    every: bool = False,
) -> jax.Array:
    """Probabilities [H, W, C] → those of the fully connected CRF, [H, W, C] float32.

    Pure: jit, vmap over a leading axis of all arrays, and grad with respect to `probs`, the
    weights, the sigmas and the compatibility work; of sigma_alpha and sigma_beta with the modes'
    members as they are.

    Args:
      image: [H, W, 3], values 0..255, any dtype.
      probs: [H, W, C]; rows need not sum to 1. Zeros and NaN count as the smallest probability.
      w1, sigma_alpha, sigma_beta: weight of the appearance kernel, its width in px, and in colour.
      w2, sigma_gamma: weight and width in px of the smoothness kernel. Widths in px may be pairs
        (y, x), that of colour a triple.
      iterations: of the mean field; the papers take 10.
      method: "modes", which None is; "fast", looser, for CPUs; "exact", every pair of pixels, for
        truth.
      compatibility: [C, C], what a pixel of class a (row) lends to class b of its neighbours;
        None is Potts', the identity.
      mask: [H, W] bool, False for pixels that are padding: they send nothing.
      tile, modes: of "modes": side of a tile in px, and modes in it; None goes by sigma_beta.
      memory: bytes the appearance kernel may take; past it, it is computed anew in every
        iteration, in blocks.
      every: return all iterations, [iterations, H, W, C]: the belief maps of [V2] Fig. 5.

    Raises:
      ValueError: for an unknown method, or shapes that do not belong together.
    """
    height, width, classes = probs.shape
    if image.shape != (height, width, 3):
        raise ValueError(f"image {image.shape} and probs {probs.shape}: takes [H, W, 3], [H, W, C]")
    if mask is None:
        mask = jnp.ones((height, width), bool)

    def lend(weight):
        if compatibility is None:
            return lambda heard: weight * heard
        return lambda heard: weight * kernels.exactly(heard, compatibility)

    near = kernels.smoothness(height, width, sigma_gamma)
    alike = appearance(image, mask, sigma_alpha, sigma_beta, method or "modes", tile, modes, memory)
    potentials = [
        symmetric(kernel, mask, lend(weight)) for kernel, weight in ((alike, w1), (near, w2))
    ]
    probs = jnp.nan_to_num(probs.astype(jnp.float32), nan=0.0).reshape(-1, classes)
    q = infer(jnp.log(jnp.maximum(probs, _TINY)), potentials, iterations, every)
    return q.reshape(*q.shape[:-2], height, width, classes)


def appearance(image, mask, sigma_alpha, sigma_beta, method, tile=None, modes=None, memory=1e9):
    """K1 of an image [H, W, 3]: [N, C] → [N, C]; arguments and errors as `mean_field`'s."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    points = kernels.scaled_points(image, sigma_alpha, sigma_beta)
    # A traced width is taken for a narrow one: finer modes are never wrong.
    wide = not isinstance(sigma_beta, jax.core.Tracer) and np.asarray(sigma_beta).min() >= WIDE
    if method == "fast":
        return fast.appearance(points, mask, wide, memory)
    flat = points.reshape(-1, 5)
    if method == "exact":
        return kernels.appearance(flat, kernels.pixel_keys(flat), memory)
    given = COARSE if wide else FINE
    keys = kernels.mode_keys(points, mask, tile or given[0], modes or given[1])
    return kernels.appearance(flat, keys, memory)


def symmetric(kernel, mask, lend) -> Potential:
    """The papers' normalisation: n K n, n = (K 1)^-1/2, over the pixels of the mask [H, W]."""
    present = mask.reshape(-1, 1).astype(jnp.float32)
    # K 1 >= 1, as a pixel hears itself: an approximation may forget that.
    norm = present * lax.rsqrt(jnp.maximum(kernel(present), 1))
    return Potential(kernel, norm, norm, lend)


def infer(logits, potentials: Sequence[Potential], iterations: int, every: bool = False):
    """Parallel mean field: logits [N, C] → Q [N, C], or of every iteration."""

    def iteration(q, _):
        total = logits
        for kernel, before, after, lend in potentials:
            total = total + lend(after * kernel(before * q))
        q = jax.nn.softmax(total)
        return q, q if every else None

    q, all_q = lax.scan(iteration, jax.nn.softmax(logits), length=iterations)
    return all_q if every else q
