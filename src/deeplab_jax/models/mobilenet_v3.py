"""MobileNetV3 large and small (arXiv 1905.02244) as DeepLab backbones.

The `_seg` variants are those of the paper's Sec. 6.4 and of the official code: the channels of
the last blocks halved.

Squeeze-excite averages over all positions, so at another output stride these features are close to
the same, not the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv, ConvBN, DepthwiseConvBN, rematerialised
from deeplab_jax.models.mobilenet_v2 import make_divisible

TF_GATE_SLOPE = 0.16667  # where PyTorch and the paper have 1/6


class Block(NamedTuple):
    """One row of the paper's Tables 1 and 2."""

    kernel_size: int
    expanded: int
    features: int
    squeeze: bool
    activation: str  # "relu" or "hard_swish"
    stride: int


LARGE = [
    Block(3, 16, 16, False, "relu", 1),
    Block(3, 64, 24, False, "relu", 2),
    Block(3, 72, 24, False, "relu", 1),
    Block(5, 72, 40, True, "relu", 2),
    Block(5, 120, 40, True, "relu", 1),
    Block(5, 120, 40, True, "relu", 1),
    Block(3, 240, 80, False, "hard_swish", 2),
    Block(3, 200, 80, False, "hard_swish", 1),
    Block(3, 184, 80, False, "hard_swish", 1),
    Block(3, 184, 80, False, "hard_swish", 1),
    Block(3, 480, 112, True, "hard_swish", 1),
    Block(3, 672, 112, True, "hard_swish", 1),
    Block(5, 672, 160, True, "hard_swish", 2),
    Block(5, 960, 160, True, "hard_swish", 1),
    Block(5, 960, 160, True, "hard_swish", 1),
]
SMALL = [
    Block(3, 16, 16, True, "relu", 2),
    Block(3, 72, 24, False, "relu", 2),
    Block(3, 88, 24, False, "relu", 1),
    Block(5, 96, 40, True, "hard_swish", 2),
    Block(5, 240, 40, True, "hard_swish", 1),
    Block(5, 240, 40, True, "hard_swish", 1),
    Block(5, 120, 48, True, "hard_swish", 1),
    Block(5, 144, 48, True, "hard_swish", 1),
    Block(5, 288, 96, True, "hard_swish", 2),
    Block(5, 576, 96, True, "hard_swish", 1),
    Block(5, 576, 96, True, "hard_swish", 1),
]


def _halved(blocks: list[Block]) -> list[Block]:
    """The last three blocks at half their width; the first still reads the full one before."""
    return blocks[:-3] + [
        b._replace(expanded=b.expanded // 2, features=b.features // 2) for b in blocks[-3:]
    ]


BLOCKS = {
    "mobilenet_v3_large": LARGE,
    "mobilenet_v3_small": SMALL,
    "mobilenet_v3_large_seg": _halved(LARGE),
    "mobilenet_v3_small_seg": _halved(SMALL),
}
# Blocks that the decoder taps, by stride.
DECODER_BLOCKS = {"large": {2: 4, 5: 8, 11: 16}, "small": {0: 4, 2: 8, 7: 16}}


class MobileNetV3(nn.Module):
    """Normalised images [B, H, W, C] → {"features" [B, h, w, 6 x last block], "low_level_4", ...}.

    Attributes:
      variant: a key of `BLOCKS`.
      output_stride: 8, 16 or 32.
      norm: makes a batch norm.
      padding: "same" as in TensorFlow, or "fixed" for weights trained in PyTorch.
      gate_slope: of the squeeze-excite gates.
      dilation_start: see `ops.strides_and_rates`.
      low_level: what the decoder taps: "inner", the depthwise output, or "output", the block's.
      remat: compute a unit's activations again in the backward pass, to save memory.
    """

    variant: str
    output_stride: int
    norm: Callable[..., nn.Module]
    padding: str = "same"
    gate_slope: float = TF_GATE_SLOPE
    dilation_start: str = "after"
    low_level: str = "inner"
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        blocks = BLOCKS[self.variant]
        decoder = DECODER_BLOCKS["large" if "large" in self.variant else "small"]
        (stem_stride, _), *plan = ops.strides_and_rates(
            [2, *(block.stride for block in blocks)], self.output_stride, self.dilation_start
        )
        common = {"norm": self.norm, "dtype": self.dtype}
        last = {"activation": hard_swish, **common}

        x = ConvBN(
            16, kernel_size=3, stride=stem_stride, padding=self.padding, **last, name="stem"
        )(x, train)  # [B, H/2, W/2, 16]
        unit_class = rematerialised(InvertedResidual, self.remat)
        endpoints = {}
        for i, (block, (stride, rate)) in enumerate(zip(blocks, plan)):
            x, depthwise = unit_class(
                block, stride, rate, self.padding, self.gate_slope, **common, name=f"block{i}"
            )(x, train)
            if i in decoder:
                tapped = depthwise if self.low_level == "inner" else x
                endpoints[f"low_level_{decoder[i]}"] = tapped
        x = ConvBN(6 * blocks[-1].features, **last, name="last")(x, train)
        return endpoints | {"features": x}


class InvertedResidual(nn.Module):
    """Expand 1x1 → depthwise → squeeze-excite → project 1x1 (linear), with a shortcut.

    Returns the block's and the depthwise convolution's output (before squeeze-excite).
    """

    block: Block
    stride: int
    rate: int
    padding: str
    gate_slope: float
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        block, x, channels = self.block, inputs, inputs.shape[-1]
        activation = hard_swish if block.activation == "hard_swish" else nn.relu
        common = {"norm": self.norm, "dtype": self.dtype}
        if block.expanded != channels:
            x = ConvBN(block.expanded, activation=activation, **common, name="expand")(x, train)
        depthwise = x = DepthwiseConvBN(
            kernel_size=block.kernel_size,
            stride=self.stride,
            rate=self.rate,
            padding=self.padding,
            activation=activation,
            **common,
            name="depthwise",
        )(x, train)
        if block.squeeze:
            x = x * SqueezeExcite(self.gate_slope, self.dtype, name="squeeze_excite")(x)
        x = ConvBN(block.features, activation=None, **common, name="project")(x, train)
        if self.stride == 1 and channels == block.features:
            x = x + inputs
        return x, depthwise


class SqueezeExcite(nn.Module):
    """Gates [B, 1, 1, C] in 0..1 from the channels' means."""

    gate_slope: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        x = ops.average_pool(x)
        squeezed = make_divisible(channels // 4, 8)
        x = nn.relu(Conv(squeezed, dtype=self.dtype, name="squeeze")(x))
        return hard_sigmoid(Conv(channels, dtype=self.dtype, name="excite")(x), self.gate_slope)


def hard_sigmoid(x: jax.Array, slope: float = 1 / 6) -> jax.Array:
    """relu6(x + 3) * slope."""
    return nn.relu6(x + 3) * slope


def hard_swish(x: jax.Array) -> jax.Array:
    """x * relu6(x + 3) / 6 ([MobileNetV3] Sec. 5.2)."""
    return x * hard_sigmoid(x)
