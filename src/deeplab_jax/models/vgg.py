"""VGG-16 (arXiv 1409.1556) as a DeepLab backbone: five blocks of 3x3 convolutions, then a pooling.

As [V1] and its released nets have it: the last two poolings lose their stride, conv5 takes rate 2,
and every pooling has 3x3 windows, which no rate ever spreads. Windows of 2x2 are the original's and
FCN's. With batch norm it is torchvision's vgg16_bn.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv, ConvBN, rematerialised

BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # (convolutions, channels)


class VGG16(nn.Module):
    """Normalised images [B, H, W, C] → {"features" [B, h, w, 512], "pool1", "low_level_4", ...}.

    "pool1" to "pool5" are the poolings, the last one the features; "low_level_s" is the last
    convolution of the block at stride s.

    Attributes:
      output_stride: 8, 16 or 32.
      pool_size: of the poolings' windows: 3 or 2.
      norm: makes a batch norm behind each convolution; None: the original has none.
      remat: compute a block's activations again in the backward pass, to save memory.
    """

    output_stride: int
    pool_size: int = 3
    norm: Callable[..., nn.Module] | None = None
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        # A block's stride sits behind its convolutions: they have the rate from before it.
        plan = ops.strides_and_rates([2] * len(BLOCKS), self.output_stride)
        padding = ops.fixed_padding((self.pool_size, self.pool_size))  # ceil(n / stride) windows
        block_class = rematerialised(Block, self.remat)
        endpoints = {}
        for number, ((convs, features), (stride, rate)) in enumerate(zip(BLOCKS, plan), start=1):
            block = block_class(number, convs, features, rate, self.norm, self.dtype)
            nn.share_scope(self, block)
            x = endpoints[f"low_level_{2 ** (number - 1)}"] = block(x, train)
            x = endpoints[f"pool{number}"] = ops.max_pool(x, self.pool_size, stride, padding)
        return endpoints | {"features": x}


class Block(nn.Module):
    """The convolutions before a pooling, "conv5_1" to "conv5_3" of number 5, each with ReLU."""

    number: int
    convs: int
    features: int
    rate: int
    norm: Callable[..., nn.Module] | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        common = {"kernel_size": 3, "rate": self.rate, "dtype": self.dtype}
        for i in range(1, self.convs + 1):
            name = f"conv{self.number}_{i}"
            if self.norm is None:
                x = nn.relu(Conv(self.features, **common, name=name)(x))
            else:
                x = ConvBN(self.features, self.norm, bias=True, **common, name=name)(x, train)
        return x
