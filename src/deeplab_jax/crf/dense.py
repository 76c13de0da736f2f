"""pydensecrf's calls, for programs that were written for it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.crf import inference, kernels

# pydensecrf's constants, by their names there.
CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = range(3)
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = range(4)


class DenseCRF2D:
    """pydensecrf.densecrf.DenseCRF2D, of our mean field.

    As there, sizes are (width, height) and widths of kernels (x, y); energies are [C, H * W].

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
        self.unary = np.asarray(energy, np.float32)

    def addPairwiseGaussian(
        self, sxy, compat, kernel=DIAG_KERNEL, normalization=NORMALIZE_SYMMETRIC
    ) -> None:
        """sxy: width in px, or (x, y). compat: a weight (Potts), [C] or [C, C] energies."""
        sigma = _pair(sxy)
        self._add(lambda mask: kernels.smoothness(*self.size, sigma), compat, normalization)

    def addPairwiseBilateral(
        self, sxy, srgb, rgbim, compat, kernel=DIAG_KERNEL, normalization=NORMALIZE_SYMMETRIC
    ) -> None:
        """sxy, compat: as above. srgb: width in colour, or (r, g, b). rgbim: [H, W, 3] uint8."""
        if np.shape(rgbim) != (*self.size, 3):
            raise ValueError(f"rgbim {np.shape(rgbim)}: takes (height, width, 3) {(*self.size, 3)}")
        image, sigma = jnp.asarray(rgbim), _pair(sxy)
        srgb = np.broadcast_to(np.asarray(srgb, np.float32), (3,))
        self._add(
            lambda mask: inference.appearance(image, mask, sigma, srgb, self.method),
            compat,
            normalization,
        )

    def inference(self, n_iterations: int) -> np.ndarray:
        """Probabilities [C, H * W] float32 after so many iterations.

        Raises:
          ValueError: without a unary energy.
        """
        if self.unary is None:
            raise ValueError("setUnaryEnergy must come before inference")
        return np.asarray(self._infer(self.unary, n_iterations))

    def _infer(self, unary, iterations):
        @partial(jax.jit, static_argnums=1)
        def program(unary, iterations):
            mask = jnp.ones(self.size, bool)
            terms = [make(mask) for make in self.terms]
            return inference.infer(-unary.T, terms, iterations).T

        return program(unary, iterations)

    def _add(self, make_kernel, compat, normalization) -> None:
        compat = np.asarray(compat, np.float32)
        shapes = ((), (self.classes,), (self.classes, self.classes))
        if compat.shape not in shapes:
            raise ValueError(f"compat {compat.shape}: takes one of {shapes}")

        def lend(heard):
            if compat.ndim == 0:
                return compat * heard
            if compat.ndim == 1:
                return -compat * heard
            return -kernels.exactly(heard, (compat + compat.T) / 2)

        def make(mask):
            kernel = make_kernel(mask)
            term = inference.symmetric(kernel, mask, lend)
            if normalization == NORMALIZE_SYMMETRIC:
                return term
            whole, one = term.before**2, jnp.ones_like(term.before)
            before = whole if normalization == NORMALIZE_BEFORE else one
            after = whole if normalization == NORMALIZE_AFTER else one
            return term._replace(before=before, after=after)

        self.terms.append(make)


def _pair(sxy) -> np.ndarray:
    """(x, y) as pydensecrf takes it → (y, x)."""
    return np.broadcast_to(np.asarray(sxy, np.float32), (2,))[::-1].copy()
