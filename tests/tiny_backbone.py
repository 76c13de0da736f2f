"""A backbone for tests, asked for as "tiny_backbone:Tiny"; it imports none of them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deeplab_jax.models.layers import ConvBN, DepthwiseConvBN


class Tiny(nn.Module):
    """A backbone of depthwise and 1x1 convolutions, which compile and run at once in float64."""

    output_stride: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        endpoints = {}
        for i in range(4):
            depthwise = DepthwiseConvBN(self.norm, stride=2, dtype=self.dtype, name=f"depthwise{i}")
            x = ConvBN(8 << i, self.norm, dtype=self.dtype, name=f"conv{i}")(
                depthwise(x, train), train
            )
            endpoints[f"low_level_{2 << i}"] = x
        return endpoints | {"features": x}
