"""GoogLeNet (arXiv 1409.4842) with batch norm, up to its last inception module."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import ConvBN, rematerialised

# Channels of a module: 1x1; 3x3 and what reduces before it; 5x5 likewise; behind the pooling.
MODULES = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


class GoogLeNet(nn.Module):
    """Normalised images [B, H, W, C] → {"features" [B, h, w, 1024]} at stride 32.

    The average pooling before the classifier is left out, as in [FCN] Sec. 4.1.

    Attributes:
      norm: makes the batch norms.
      wide_kernel_size: of the modules' third branch: the paper's 5; or 3, as torchvision's
        weights have it, whose last pooling has windows of 2x2 then, not 3x3.
      remat: compute a module's activations again in the backward pass, to save memory.
    """

    norm: Callable[..., nn.Module]
    wide_kernel_size: int = 3
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        common = {"norm": self.norm, "dtype": self.dtype}
        x = ConvBN(64, kernel_size=7, stride=2, padding="fixed", **common, name="conv1")(x, train)
        x = _halved(x)
        x = ConvBN(64, **common, name="conv2")(x, train)
        x = ConvBN(192, kernel_size=3, **common, name="conv3")(x, train)
        x = _halved(x)
        module_class = rematerialised(Inception, self.remat)
        for name, channels in MODULES.items():
            if name == "4a":
                x = _halved(x)
            if name == "5a":
                x = _halved(x, 3 if self.wide_kernel_size == 5 else 2)
            module = module_class(
                *channels, self.wide_kernel_size, **common, name=f"inception{name}"
            )
            x = module(x, train)
        return {"features": x}


class Inception(nn.Module):
    """Four branches side by side: 1x1, 3x3, 5x5 (or a second 3x3), and behind a 3x3 pooling."""

    plain: int
    middle: tuple[int, int]
    wide: tuple[int, int]
    pooled: int
    wide_kernel_size: int
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(ConvBN, norm=self.norm, dtype=self.dtype)
        branches = [conv(self.plain, name="conv1x1")(x, train)]
        for name, (reduced, features), size in (
            ("conv3x3", self.middle, 3),
            ("conv5x5", self.wide, self.wide_kernel_size),
        ):
            y = conv(reduced, name=f"{name}_reduce")(x, train)
            branches.append(conv(features, kernel_size=size, name=name)(y, train))
        pooled = ops.max_pool(x, 3, 1, ((1, 1), (1, 1)))
        branches.append(conv(self.pooled, name="pool_project")(pooled, train))
        return jnp.concatenate(branches, axis=-1)


def _halved(x, size: int = 3):
    """Windows that start inside the image, ceil(n / 2) of them."""
    ends = tuple((0, max((-(-n // 2) - 1) * 2 + size - n, 0)) for n in x.shape[1:3])
    return ops.max_pool(x, size, 2, ends)
