"""MobileNetV2 (arXiv 1801.04381) as a DeepLab backbone: up to the 320 channels, no classifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import ConvBN, DepthwiseConvBN, rematerialised


class Block(NamedTuple):
    expansion: int
    features: int
    stride: int


# Table 2 of the MobileNetV2 paper: (expansion t, channels c, repeats n, stride s).
STAGES = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
BLOCKS = [Block(t, c, s if i == 0 else 1) for t, c, n, s in STAGES for i in range(n)]
# Blocks that the decoder taps, by stride: the last at that stride.
DECODER_BLOCKS = {2: 4, 5: 8, 12: 16}


class MobileNetV2(nn.Module):
    """Normalised images [B, H, W, C] → {"features" [B, h, w, 320 x width], "low_level_4", ...}.

    Attributes:
      width_multiplier: scales all channels. The official DeepLab models keep what comes
        out as it is, where the paper rounds to multiples of 8.
      output_stride: 8, 16 or 32.
      norm: makes a batch norm.
      padding: "same" as in TensorFlow, or "fixed" for weights trained in PyTorch: they differ
        where a stride-2 layer meets an even size. "block" pads a block's input, before its
        expansion, as the PyTorch ports jfzhang95 and VainF do: the border is then what the
        expansion makes of zeros. "block_bare_stem" (VainF) moreover does not pad the stem.
      low_level: what the decoder taps: "inner", the depthwise output (TensorFlow), or "output",
        that of a block.
      dilation_start: "after" or "at", see `ops.strides_and_rates`; "next_stage" (jfzhang95)
        keeps the present rate throughout the stage of Table 2 that lost its stride.
      remat: compute a unit's activations again in the backward pass, to save memory.
    """

    output_stride: int
    norm: Callable[..., nn.Module]
    width_multiplier: float = 1.0
    padding: str = "same"
    low_level: str = "inner"
    dilation_start: str = "after"
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        (stem_stride, _), *plan = self._plan()
        common = {"norm": self.norm, "dtype": self.dtype}
        stem_padding = {"block": "fixed", "block_bare_stem": "valid"}

        x = ConvBN(
            self._width(32),
            kernel_size=3,
            stride=stem_stride,
            padding=stem_padding.get(self.padding, self.padding),
            activation=nn.relu6,
            **common,
            name="stem",
        )(x, train)  # [B, H/2, W/2, 32]
        unit_class = rematerialised(InvertedResidual, self.remat)
        endpoints = {}
        for i, (block, (stride, rate)) in enumerate(zip(BLOCKS, plan)):
            x, depthwise = unit_class(
                block.expansion,
                self._width(block.features),
                stride,
                rate,
                padding=self.padding.removesuffix("_bare_stem"),
                **common,
                name=f"block{i}",
            )(x, train)
            if i in DECODER_BLOCKS:
                tapped = depthwise if self.low_level == "inner" else x
                endpoints[f"low_level_{DECODER_BLOCKS[i]}"] = tapped
        return endpoints | {"features": x}

    def _plan(self) -> list[tuple[int, int]]:
        """(stride, rate) of the stem and of each block."""
        if self.dilation_start != "next_stage":
            strides = [2, *(block.stride for block in BLOCKS)]
            return ops.strides_and_rates(strides, self.output_stride, self.dilation_start)
        stem, *stages = ops.strides_and_rates([2, *(s for *_, s in STAGES)], self.output_stride)
        return [stem] + [
            (stride if i == 0 else 1, rate)
            for (stride, rate), (*_, count, _) in zip(stages, STAGES)
            for i in range(count)
        ]

    def _width(self, channels: int) -> int:
        return max(1, int(channels * self.width_multiplier + 0.5))


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
        x, channels, padding = inputs, inputs.shape[-1], self.padding
        if padding == "block":
            x = jnp.pad(x, ((0, 0), *ops.fixed_padding((3, 3), self.rate), (0, 0)))
            padding = "valid"
        if self.expansion > 1:
            wide = make_divisible(channels * self.expansion, 8)
            x = ConvBN(wide, activation=nn.relu6, **common, name="expand")(x, train)
        depthwise = DepthwiseConvBN(
            stride=self.stride,
            rate=self.rate,
            padding=padding,
            activation=nn.relu6,
            **common,
            name="depthwise",
        )(x, train)
        x = ConvBN(self.features, activation=None, **common, name="project")(depthwise, train)
        if self.stride == 1 and channels == self.features:
            x = x + inputs
        return x, depthwise


def make_divisible(channels: int, divisor: int) -> int:
    """The paper's rounding: nearest multiple of `divisor`, never over 10 % below `channels`."""
    rounded = max(divisor, (channels + divisor // 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
