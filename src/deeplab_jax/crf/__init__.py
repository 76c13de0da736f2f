"""The fully connected CRF of [V1] Sec. 3.3 and [V2] Sec. 3.3: mean field as a scan.

Two Gaussian kernels join every pixel to every other (arXiv 1210.5644), an appearance kernel over
place and colour and a smoothness kernel over place alone:

    K1 = exp(-|p - p'|^2 / (2 sigma_alpha^2) - |I - I'|^2 / (2 sigma_beta^2))
    K2 = exp(-|p - p'|^2 / (2 sigma_gamma^2))

Each iteration is Q ← softmax(log probs + w1 n1 K1 (n1 Q) + w2 n2 K2 (n2 Q)) with n = (K 1)^-1/2.
K2 is a product of two small matrices. K1 is filtered without a permutohedral lattice: what the
pixels send is gathered in modes, clusters of pixels that are alike in place and colour inside a
tile of the image, and every pixel hears every mode through the kernel averaged over the mode.
"""

from deeplab_jax.crf.dense import DenseCRF2D
from deeplab_jax.crf.inference import METHODS, mean_field

__all__ = ["METHODS", "DenseCRF2D", "mean_field"]
