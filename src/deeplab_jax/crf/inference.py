"""Mean field, over any kernels."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.crf import fast, kernels

METHODS = ("modes", "exact", "fast")
# sigma_beta from which colours are blurred so far that coarser modes do; (px, modes) of a tile.
WIDE, COARSE, FINE = 8.0, (32, 128), (16, 64)
REACH = 2.5  # sigma_alpha, beyond which "fast" hears nothing
SMALL = 2**15  # pixels of an image that "fast" takes no shortcuts in
_TINY = 1e-20


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
    memory: float = 4e9,
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
    if mask.shape != (height, width):
        raise ValueError(f"mask {mask.shape} for an image of {(height, width)}")
    if compatibility is not None and np.shape(compatibility) != (classes, classes):
        raise ValueError(f"compatibility {np.shape(compatibility)} for {classes} classes")

    of_image = Kernels(mask, method or METHODS[0], tile, modes, memory)
    weighted = (
        (of_image.appearance(image, sigma_alpha, sigma_beta), w1),
        (of_image.smoothness(sigma_gamma), w2),
    )
    return of_image.mean_field(probs, weighted, iterations, compatibility, every)


def is_wide(sigma_beta) -> bool:
    """Whether coarser modes do. A traced width is taken for a narrow one."""
    return not isinstance(sigma_beta, jax.core.Tracer) and bool(
        np.asarray(sigma_beta).min() >= WIDE
    )


class Kernels:
    """The kernels of one image by one method, and mean field with them; arguments and errors as
    `mean_field`'s."""

    def __init__(self, mask, method: str, tile=None, modes=None, memory: float = 4e9):
        if method not in METHODS:
            raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
        if method == "fast" and mask.size <= SMALL:  # each mode matters more there
            method, tile, modes = "modes", tile or COARSE[0], modes or COARSE[1]
        self.method, self.memory, self.tile, self.modes = method, memory, tile, modes
        self.mask = fast.padded(mask) if method == "fast" else mask

    def smoothness(self, sigma):
        """K2."""
        of = fast if self.method == "fast" else kernels
        return of.smoothness(*self.mask.shape, sigma)

    def appearance(self, image, sigma_alpha, sigma_beta, wide: bool | None = None):
        """K1 of an image [H, W, 3]; `wide`, what `is_wide` says, where sigma_beta is traced."""
        points = kernels.scaled_points(image, sigma_alpha, sigma_beta)
        wide = is_wide(sigma_beta) if wide is None else wide
        if self.method == "fast":
            reach = None
            if not isinstance(sigma_alpha, jax.core.Tracer):
                reach = np.broadcast_to(REACH * np.asarray(sigma_alpha), (2,))
            return fast.appearance(fast.padded(points), self.mask, wide, self.memory, reach)
        flat = points.reshape(-1, 5)
        if self.method == "exact":
            return kernels.appearance(flat, kernels.pixel_keys(flat), self.memory)
        given = COARSE if wide else FINE
        tile = self.tile or given[0]
        keys = kernels.mode_keys(points, self.mask, (tile, tile), self.modes or given[1])
        return kernels.appearance(flat, keys, self.memory)

    def mean_field(
        self, probs, weighted, iterations: int, compatibility=None, every: bool = False
    ) -> jax.Array:
        """As the function, with kernels of this class and their weights."""

        def lend(weight):
            if compatibility is None:
                return lambda heard: weight * heard
            return lambda heard: weight * kernels.exactly(heard, compatibility)

        probs = jnp.nan_to_num(probs.astype(jnp.float32), nan=0.0)
        potentials = [kernels.Potential(kernel, lend(weight)) for kernel, weight in weighted]
        return self.infer(jnp.log(jnp.maximum(probs, _TINY)), potentials, iterations, every)

    def infer(self, logits, potentials, iterations: int, every: bool = False):
        """Parallel mean field: logits [H, W, C] → Q [H, W, C], or [iterations, H, W, C]."""
        height, width, classes = logits.shape
        if self.method == "fast":
            logits = fast.padded(logits)
        infer = fast.infer if self.method == "fast" else _infer
        q = infer(logits.reshape(-1, classes), potentials, self.mask, iterations, every)
        q = q.reshape(*q.shape[:-2], *self.mask.shape, classes)
        return q[..., :height, :width, :]


def _infer(logits, potentials: Sequence[kernels.Potential], mask, iterations, every):
    """Logits [N, C] → Q [N, C], or of every iteration."""
    present = mask.reshape(-1, 1).astype(jnp.float32)
    scales = [kernels.norms(p, p.kernel(present), present) for p in potentials]

    def iteration(q, _):
        q = kernels.update(logits, q, potentials, scales)
        return q, q if every else None

    q, all_q = lax.scan(iteration, jax.nn.softmax(logits), length=iterations)
    return all_q if every else q
