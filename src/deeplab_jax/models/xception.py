"""Xception as DeepLabv3+ modifies it ([V3+] Sec. 3.2, Fig. 4): the "modified aligned Xception".

Deeper than the original, every max pooling replaced by a strided separable convolution, batch
norm after each depthwise convolution. Where the paper is silent this follows the official code:
ReLU before each separable convolution, except in the last module, which has it after both halves.

`xception_65_jfzhang95` is the widespread PyTorch port with its differences: shortcuts and the
decoder see activated features (its first ReLU works in place), the last module is like the others.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import ConvBN, DepthwiseConvBN, rematerialised


class Unit(NamedTuple):
    """One Xception module: the figure's box."""

    name: str
    features: tuple[int, int, int]
    stride: int
    skip: str | None  # "conv": projected shortcut, "sum": identity, None: no shortcut
    relu_before: bool = True  # each separable convolution; else after both its halves
    relu_shortcut: bool = False  # the shortcut starts behind the first ReLU
    relu_after: bool = False  # the module's output
    undilated_last: bool = False  # the third convolution never takes a rate


def _entry(block: int, features: int, stride: int) -> Unit:
    return Unit(f"entry_block{block}", (features,) * 3, stride, "conv")


def _middle(count: int) -> list[Unit]:
    return [Unit(f"middle_unit{i}", (728,) * 3, 1, "sum") for i in range(1, count + 1)]


ENTRY_FLOW = [_entry(1, 128, 2), _entry(2, 256, 2), _entry(3, 728, 2)]
EXIT_FLOW = [
    Unit("exit_block1", (728, 1024, 1024), 2, "conv"),
    Unit("exit_block2", (1536, 1536, 2048), 1, None, relu_before=False),
]
UNITS = {
    "xception_41": [*ENTRY_FLOW, *_middle(8), *EXIT_FLOW],
    "xception_65": [*ENTRY_FLOW, *_middle(16), *EXIT_FLOW],
    "xception_71": [
        _entry(1, 128, 2),
        _entry(2, 256, 1),
        _entry(3, 256, 2),
        _entry(4, 728, 1),
        _entry(5, 728, 2),
        *_middle(16),
        *EXIT_FLOW,
    ],
}
JFZHANG95 = "xception_65_jfzhang95"
UNITS[JFZHANG95] = [
    *(unit._replace(relu_shortcut=True) for unit in UNITS["xception_65"][:-2]),
    EXIT_FLOW[0]._replace(relu_shortcut=True, undilated_last=True),
    EXIT_FLOW[1]._replace(relu_before=True, relu_after=True),
]
# Units that the decoder taps, by stride: at their second separable convolution, before any
# activation; JFZHANG95's at their activated output.
DECODER_UNITS = {
    "xception_41": {4: "entry_block2", 8: "entry_block3", 16: "exit_block1"},
    "xception_65": {4: "entry_block2", 8: "entry_block3", 16: "exit_block1"},
    "xception_71": {4: "entry_block3", 8: "entry_block5", 16: "exit_block1"},
    JFZHANG95: {4: "entry_block1", 8: "entry_block2", 16: "entry_block3"},
}


class Xception(nn.Module):
    """Normalised images [B, H, W, C] → {"features" [B, h, w, 2048], "low_level_4", ...}.

    Attributes:
      variant: a key of `UNITS`.
      output_stride: 8, 16 or 32.
      multi_grid: rates of the three separable convolutions of the last module.
      depthwise: what follows each depthwise convolution: "norm" (batch norm; the official code),
        "norm_relu" ([V3+] Sec. 3.2 to the letter) or "bare" (its ablation).
      norm: makes a batch norm.
      remat: compute a unit's activations again in the backward pass, to save memory.
    """

    variant: str
    output_stride: int
    norm: Callable[..., nn.Module]
    multi_grid: Sequence[int] = (1, 1, 1)
    depthwise: str = "norm"
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        units = UNITS[self.variant]
        (stem_stride, _), *plan = ops.strides_and_rates(
            [2, *(unit.stride for unit in units)], self.output_stride
        )
        decoder = {unit: stride for stride, unit in DECODER_UNITS[self.variant].items()}
        conv = {"kernel_size": 3, "padding": "fixed", "norm": self.norm, "dtype": self.dtype}

        x = ConvBN(32, stride=stem_stride, **conv, name="conv1_1")(x, train)  # [B, H/2, W/2, 32]
        x = ConvBN(64, **conv, name="conv1_2")(x, train)

        unit_class = rematerialised(XceptionModule, self.remat)
        endpoints = {}
        for unit, (stride, rate) in zip(units, plan):
            grid = self.multi_grid if unit.name == "exit_block2" else (1, 1, 1)
            rates = [rate * r for r in grid]
            module = unit_class(
                unit, stride, rates, self.depthwise, self.norm, self.dtype, name=unit.name
            )
            x, second_conv = module(x, train)
            if unit.name in decoder:
                tapped = nn.relu(x) if self.variant == JFZHANG95 else second_conv
                endpoints[f"low_level_{decoder[unit.name]}"] = tapped
        return endpoints | {"features": x}


class XceptionModule(nn.Module):
    """Three atrous separable convolutions, the last one strided, and the shortcut around them.

    Returns the module's output and the second convolution's, which the decoder taps before any
    activation.
    """

    unit: Unit
    stride: int
    rates: Sequence[int]
    depthwise: str
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        unit = self.unit
        after = None if unit.relu_before else nn.relu
        common = {"norm": self.norm, "dtype": self.dtype, "activation": after}
        between = (
            common
            | {
                "norm": {"activation": after},
                "norm_relu": {"activation": nn.relu},
                "bare": {"activation": None, "norm": None},
            }[self.depthwise]
        )
        if unit.relu_shortcut:
            inputs = nn.relu(inputs)
        x, outputs = inputs, []
        for i, (features, rate) in enumerate(zip(unit.features, self.rates), start=1):
            stride = self.stride if i == 3 else 1
            if i == 3 and unit.undilated_last:
                rate = 1
            name = f"separable_conv{i}"
            if unit.relu_before:
                x = nn.relu(x)
            x = DepthwiseConvBN(
                stride=stride, rate=rate, padding="fixed", **between, name=f"{name}_depthwise"
            )(x, train)
            x = ConvBN(features, **common, name=f"{name}_pointwise")(x, train)
            outputs.append(x)

        if unit.skip == "conv":
            x = x + ConvBN(
                unit.features[-1],
                self.norm,
                stride=self.stride,
                activation=None,
                dtype=self.dtype,
                name="shortcut",
            )(inputs, train)
        elif unit.skip == "sum":
            x = x + inputs
        return nn.relu(x) if unit.relu_after else x, outputs[1]
