"""AlexNet (one tower, arXiv 1404.5997, as torchvision has it) up to its last pooling."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv

FEATURES = (64, 192, 384, 256, 256)  # of conv1 to conv5
POOLED = (1, 2, 5)  # convolutions with a 3x3 pooling of stride 2 behind them


class AlexNet(nn.Module):
    """Normalised images [B, H, W, C] → {"features" [B, h, w, 256]} at stride 32.

    The first convolution starts 2 px outside the image, poolings start inside, as the classifier
    has it; with "same" they go on to the image's end: h = ceil(H / 32), and inside the features
    are the classifier's.

    Attributes:
      padding: "same"; or "fixed", the classifier's, which drops what does not fill a window.
      remat: compute activations again in the backward pass, to save memory.
    """

    padding: str = "same"
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        conv_class = nn.remat(Conv) if self.remat else Conv
        whole = self.padding == "same"
        for number, features in enumerate(FEATURES, start=1):
            conv = partial(conv_class, features, dtype=self.dtype, name=f"conv{number}")
            if number == 1:
                ends = tuple((2, _to_end(n, 11, 4, 2) if whole else 2) for n in x.shape[1:3])
                x = conv(kernel_size=11, stride=4, padding=ends)(x)
            else:
                x = conv(kernel_size=5 if number == 2 else 3)(x)
            x = nn.relu(x)
            if number in POOLED:
                ends = tuple((0, _to_end(n, 3, 2, 0) if whole else 0) for n in x.shape[1:3])
                x = ops.max_pool(x, 3, 2, ends)
        return {"features": x}


def _to_end(size: int, kernel: int, stride: int, before: int) -> int:
    """Padding behind that makes ceil(size / stride) windows."""
    return max((-(-size // stride) - 1) * stride + kernel - before - size, 0)
