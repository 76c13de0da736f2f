"""ResNet-50/101 (arXiv 1512.03385) as a DeepLab backbone, in the shapes that weights exist for.

| suffix | stem      | a block's stride sits in   | max pooling       | whose weights         |
| (none) | 7x7       | first unit, 3x3            | padded all around | PyTorch               |
| _caffe | 7x7       | first unit, first 1x1      | rounded up        | the original; [V2]    |
| _slim  | 7x7       | last unit, 3x3             | TensorFlow's SAME | TF-slim               |
| _beta  | three 3x3 | last unit, 3x3             | TensorFlow's SAME | TF DeepLab: v3, v3+   |
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import ConvBN, rematerialised

UNITS = {"resnet_50": (3, 4, 6, 3), "resnet_101": (3, 4, 23, 3)}  # units of blocks 1 to 4
BLOCK_STRIDES = (1, 2, 2, 2)
MAX_BLOCKS = 7


class Shape(NamedTuple):
    stem: str
    strided_unit: str  # "first" or "last" of a block
    strided_conv: int  # of a unit: 1 (1x1) or 2 (3x3)
    pool_padding: str
    low_level: str  # what the decoder taps: "output" of a block or "inner", before its last unit
    dilation_start: str


SHAPES = {
    "": Shape("7x7", "first", 2, "fixed", "output", "after"),
    "_caffe": Shape("7x7", "first", 1, "ceil", "output", "at"),
    "_slim": Shape("7x7", "last", 2, "same", "inner", "after"),
    "_beta": Shape("3x3x3", "last", 2, "same", "inner", "after"),
}
VARIANTS = {name + suffix: (name, suffix) for name in UNITS for suffix in SHAPES}


class ResNet(nn.Module):
    """Normalised images [B, H, W, C] → {"features" [B, h, w, 2048], "low_level_4", ...}.

    Attributes:
      variant: a key of `VARIANTS`.
      output_stride: 8, 16 or 32.
      norm: makes a batch norm.
      blocks: 4, or up to 7: block 4 again, in cascade, each with a stride to turn into a rate
        ([V3] Sec. 3.2, Fig. 3).
      multi_grid: rates of the units of block 4 and its copies, relative to the block's own ([V3]
        Sec. 3.2.1).
      dilation_start: see `ops.strides_and_rates`; None is the shape's own.
      remat: compute a unit's activations again in the backward pass, to save memory.
    """

    variant: str
    output_stride: int
    norm: Callable[..., nn.Module]
    blocks: int = 4
    multi_grid: Sequence[int] = (1, 1, 1)
    dilation_start: str | None = None
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        name, suffix = VARIANTS[self.variant]
        shape = SHAPES[suffix]
        copies = self.blocks - 4
        counts = UNITS[name] + copies * UNITS[name][-1:]
        outgoing = _outgoing(BLOCK_STRIDES + copies * BLOCK_STRIDES[-1:], shape.strided_unit)
        blocks = [
            _block_strides(count, stride, shape.strided_unit)
            for count, stride in zip(counts, outgoing)
        ]
        plan = ops.strides_and_rates(
            [2, 2, *(stride for block in blocks for stride in block)],
            self.output_stride,
            self.dilation_start or shape.dilation_start,
        )
        common = {"norm": self.norm, "dtype": self.dtype}

        if shape.stem == "7x7":
            x = ConvBN(64, kernel_size=7, stride=2, padding="fixed", **common, name="stem")(
                x, train
            )  # [B, H/2, W/2, 64]
        else:
            for i, (features, stride) in enumerate([(64, 2), (64, 1), (128, 1)], start=1):
                x = ConvBN(
                    features,
                    kernel_size=3,
                    stride=stride,
                    padding="fixed",
                    **common,
                    name=f"conv1_{i}",
                )(x, train)  # [B, H/2, W/2, features]
        x = ops.max_pool(x, 3, 2, _pool_padding(shape.pool_padding, x.shape[1:3]))

        unit_class = rematerialised(Bottleneck, self.remat)
        endpoints, units = {}, iter(plan[2:])
        for block, count in enumerate(counts, start=1):
            for unit in range(1, count + 1):
                stride, rate = next(units)
                if block >= 4:
                    rate *= self.multi_grid[unit - 1]
                x, conv3 = unit_class(
                    64 * 2 ** min(block - 1, 3),
                    stride,
                    rate,
                    shape.strided_conv,
                    **common,
                    name=f"block{block}_unit{unit}",
                )(x, train)
                if unit == count - 1 and shape.low_level == "inner" and block <= 4:
                    endpoints[f"low_level_{2 * 2**block}"] = conv3
            if shape.low_level == "output" and block <= 4:
                endpoints[f"low_level_{2 * 2**block}"] = x
        return endpoints | {"features": x}


class Bottleneck(nn.Module):
    """1x1 → 3x3 → 1x1 (to 4 x features), and the shortcut around them.

    Returns the unit's output and the last convolution's before the sum.
    """

    features: int
    stride: int
    rate: int
    strided_conv: int
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        common = {"norm": self.norm, "dtype": self.dtype}
        stride1, stride2 = (self.stride, 1) if self.strided_conv == 1 else (1, self.stride)
        x = ConvBN(self.features, stride=stride1, **common, name="conv1")(inputs, train)
        x = ConvBN(
            self.features,
            kernel_size=3,
            stride=stride2,
            rate=self.rate,
            padding="fixed",
            **common,
            name="conv2",
        )(x, train)
        x = ConvBN(4 * self.features, activation=None, **common, name="conv3")(x, train)
        if inputs.shape[-1] == x.shape[-1]:
            shortcut = inputs[:, :: self.stride, :: self.stride]
        else:
            shortcut = ConvBN(
                4 * self.features, stride=self.stride, activation=None, **common, name="shortcut"
            )(inputs, train)
        return nn.relu(x + shortcut), x


def _outgoing(strides: Sequence[int], strided_unit: str) -> Sequence[int]:
    """The stride each block carries: its own, or the next block's in its last unit."""
    return strides if strided_unit == "first" else (*strides[1:], 1)


def _block_strides(count: int, stride: int, strided_unit: str) -> list[int]:
    rest = [1] * (count - 1)
    return [stride, *rest] if strided_unit == "first" else [*rest, stride]


def _pool_padding(name: str, size: tuple[int, int]) -> ops.Padding:
    if name == "same":
        return ops.same_padding(size, (3, 3), 2)
    extra = 1 if name == "ceil" else 0  # an even side's last pixel gets a window of its own
    return tuple((1, 1 + extra * (n % 2 == 0)) for n in size)
