"""MobileNetV2 (arXiv 1801.04381) as a DeepLab backbone: up to the 320 channels, no classifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import ConvBN, DepthwiseConvBN


class Block(NamedTuple):
    expansion: int
    features: int
    stride: int


# Table 2 of the MobileNetV2 paper: (expansion t, channels c, repeats n, stride s), unrolled.
BLOCKS = [
    Block(t, c, s if i == 0 else 1)
    for t, c, n, s in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for i in range(n)
]
# Blocks whose expanded depthwise output feeds the decoder, by stride: the last at that stride.
DECODER_BLOCKS = {2: 4, 5: 8, 12: 16}


class MobileNetV2(nn.Module):
    """Normalised images [B, H, W, C] → {"features" [B, h, w, 320 x width], "low_level_4", ...}.

    Attributes:
      width_multiplier: scales all channels. The official DeepLab models keep what comes
        out as it is, where the paper rounds to multiples of 8.
      output_stride: 8, 16 or 32.
      norm: makes a batch norm.
      padding: "same" as in TensorFlow, or "fixed" for weights trained in PyTorch. They differ
        where a stride-2 layer meets an even size.
    """

    output_stride: int
    norm: Callable[..., nn.Module]
    width_multiplier: float = 1.0
    padding: str = "same"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        (stem_stride, _), *plan = ops.strides_and_rates(
            [2, *(block.stride for block in BLOCKS)], self.output_stride
        )
        common = {"norm": self.norm, "padding": self.padding, "dtype": self.dtype}

        x = ConvBN(
            self._width(32),
            kernel_size=3,
            stride=stem_stride,
            activation=nn.relu6,
            **common,
            name="stem",
        )(x, train)  # [B, H/2, W/2, 32]
        endpoints = {}
        for i, (block, (stride, rate)) in enumerate(zip(BLOCKS, plan)):
            x, depthwise = InvertedResidual(
                block.expansion,
                self._width(block.features),
                stride,
                rate,
                **common,
                name=f"block{i}",
            )(x, train)
            if i in DECODER_BLOCKS:
                endpoints[f"low_level_{DECODER_BLOCKS[i]}"] = depthwise
        return endpoints | {"features": x}

    def _width(self, channels: int) -> int:
        scaled = channels * self.width_multiplier
        if self.width_multiplier == 1:
            return channels
        return max(1, int(scaled + 0.5))


class InvertedResidual(nn.Module):
    """Expand 1x1 → depthwise 3x3 → project 1x1 (linear), with a shortcut where shapes allow it.

    The shortcut looks at the stride really used, so a block that traded its stride for a rate
    gains one if its channels match. Returns the block's and the depthwise convolution's output.
    """

    expansion: int
    features: int
    stride: int
    rate: int
    norm: Callable[..., nn.Module]
    padding: str
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        common = {"norm": self.norm, "dtype": self.dtype}
        x, channels = inputs, inputs.shape[-1]
        if self.expansion > 1:
            wide = _make_divisible(channels * self.expansion, 8)
            x = ConvBN(wide, activation=nn.relu6, **common, name="expand")(x, train)
        depthwise = DepthwiseConvBN(
            stride=self.stride,
            rate=self.rate,
            padding=self.padding,
            activation=nn.relu6,
            **common,
            name="depthwise",
        )(x, train)
        x = ConvBN(self.features, activation=None, **common, name="project")(depthwise, train)
        if self.stride == 1 and channels == self.features:
            x = x + inputs
        return x, depthwise


def _make_divisible(channels: int, divisor: int) -> int:
    """The paper's rounding: nearest multiple of `divisor`, never over 10 % below `channels`."""
    rounded = max(divisor, (channels + divisor // 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
