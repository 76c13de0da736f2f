"""pydensecrf's calls, for programs that were written for it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.crf import inference, kernels

# pydensecrf's constants, by their names there.
CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = range(3)
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = range(4)
NORMALIZATIONS = ("none", "before", "after", "symmetric")


class Term(NamedTuple):
    """A pairwise term but for its arrays: widths (y, x) in px and (r, g, b), and normalisation."""

    sigma: tuple[float, ...]
    colour: tuple[float, ...] | None
    normalization: int


class DenseCRF2D:
    """The calls of pydensecrf.densecrf.DenseCRF2D that set up and run, of our mean field.

    As there, sizes are (width, height) and widths of kernels (x, y); energies are [C, H * W].

    `kernel` is accepted and makes no difference: widths are those of the axes.

    Args:
      width, height: of the image, px.
      nlabels: classes.
      method: of `mean_field`.
    """

    def __init__(self, width: int, height: int, nlabels: int, method: str = "fast"):
        self.size, self.classes, self.method = (height, width), nlabels, method
        self.unary, self.terms = None, []

    def setUnaryEnergy(self, energy: np.ndarray) -> None:
        """energy [C, H * W] float32: minus the log of the probabilities."""
        expected = (self.classes, self.size[0] * self.size[1])
        if np.shape(energy) != expected:
            raise ValueError(f"unary energy {np.shape(energy)}: takes (labels, pixels) {expected}")
        self.unary = np.array(energy, np.float32)

    def addPairwiseGaussian(
        self, sxy, compat, kernel=DIAG_KERNEL, normalization=NORMALIZE_SYMMETRIC
    ) -> None:
        """sxy: width in px, or (x, y). compat: a weight (Potts), [C] or [C, C] energies."""
        self._add(Term(_widths(sxy, 2)[::-1], None, normalization), compat, None)

    def addPairwiseBilateral(
        self, sxy, srgb, rgbim, compat, kernel=DIAG_KERNEL, normalization=NORMALIZE_SYMMETRIC
    ) -> None:
        """sxy, compat: as above. srgb: width in colour, or (r, g, b). rgbim: [H, W, 3] uint8."""
        if np.shape(rgbim) != (*self.size, 3):
            raise ValueError(f"rgbim {np.shape(rgbim)}: takes (height, width, 3) {(*self.size, 3)}")
        term = Term(_widths(sxy, 2)[::-1], _widths(srgb, 3), normalization)
        self._add(term, compat, np.array(rgbim))

    def inference(self, n_iterations: int) -> np.ndarray:
        """Probabilities [C, H * W] float32 after so many iterations.

        Raises:
          ValueError: without a unary energy.
        """
        if self.unary is None:
            raise ValueError("setUnaryEnergy must come before inference")
        terms = tuple(term for term, *_ in self.terms)
        arrays = [rest for _, *rest in self.terms]
        q = _infer(self.unary, arrays, self.size, self.method, terms, n_iterations)
        return np.asarray(q)

    def _add(self, term: Term, compat, image) -> None:
        compat = np.array(compat, np.float32)
        shapes = ((), (self.classes,), (self.classes, self.classes))
        if compat.shape not in shapes:
            raise ValueError(f"compat {compat.shape}: takes one of {shapes}")
        self.terms.append((term, compat, image))


def _widths(given, count: int) -> tuple[float, ...]:
    return tuple(np.broadcast_to(np.asarray(given, np.float32), (count,)).tolist())


# Images are arguments: the next one of the same size and terms compiles nothing.
@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _infer(unary, arrays, size, method, terms, iterations):
    of_method = inference.Kernels(jnp.ones(size, bool), method)
    potentials = [_potential(term, *rest, of_method) for term, rest in zip(terms, arrays)]
    logits = -unary.T.reshape(*size, -1)
    return of_method.infer(logits, potentials, iterations).reshape(-1, logits.shape[-1]).T


def _potential(term: Term, compat, image, of_method: inference.Kernels) -> kernels.Potential:
    def lend(heard):
        if compat.ndim == 0:
            return compat * heard
        if compat.ndim == 1:
            return -compat * heard
        return -kernels.exactly(heard, (compat + compat.T) / 2)

    sxy = np.array(term.sigma, np.float32)
    if image is None:
        kernel = of_method.smoothness(sxy)
    else:
        kernel = of_method.appearance(image, sxy, np.array(term.colour, np.float32))
    return kernels.Potential(kernel, lend, NORMALIZATIONS[term.normalization])
