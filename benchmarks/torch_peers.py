"""Some of deeplab_jax's graphs in idiomatic PyTorch, to be timed against.

Submodules carry the names of the Flax tree, so that `load_flax` maps leaves by rule. Images are
[B, 3, H, W] of 32 k + 1 pixels a side, where torch's symmetric padding is TensorFlow's SAME. In
memory_format=torch.channels_last every layer keeps that format.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.BatchNorm2d):
    """Batch norm that does not count its batches: nothing reads the count."""

    def __init__(self, features, decay, epsilon):
        super().__init__(features, eps=epsilon, momentum=1 - decay)
        self.num_batches_tracked = None


class ConvBN(nn.Sequential):
    """Convolution → batch norm → activation (None: linear)."""

    def __init__(self, inputs, features, norm, size=1, stride=1, rate=1, groups=1, act=nn.ReLU):
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, features, size, stride, rate * (size // 2), rate, groups, bias=False
        )
        self.norm = norm(features)
        if act is not None:
            self.act = act(inplace=True)


def conv3x3(inputs, features, norm, separable, rate=1):
    """The heads' 3x3 convolution, each of its halves with batch norm and ReLU."""
    if not separable:
        return ConvBN(inputs, features, norm, 3, rate=rate)
    layer = nn.Sequential()
    layer.depthwise = ConvBN(inputs, inputs, norm, 3, rate=rate, groups=inputs)
    layer.pointwise = ConvBN(inputs, features, norm)
    return layer


# --- backbones: units in a row; the tapped one also returns the decoder's low-level features ----


class Backbone(nn.Module):
    def __init__(self, units: dict[str, nn.Module], tap: str | None):
        super().__init__()
        self.tap = tap
        for name, unit in units.items():
            self.add_module(name, unit)

    def forward(self, x):
        low_level = None
        for name, unit in self.named_children():
            if name == self.tap:
                x, low_level = unit(x)
            else:
                x = unit(x)
        return x, low_level


class Bottleneck(nn.Module):
    """ResNet's 1x1 → 3x3 → 1x1 (to 4 x features) and its shortcut; tapped at the output."""

    def __init__(self, inputs, features, stride, rate, norm, tapped):
        super().__init__()
        self.tapped = tapped
        self.conv1 = ConvBN(inputs, features, norm)
        self.conv2 = ConvBN(features, features, norm, 3, stride, rate)
        self.conv3 = ConvBN(features, 4 * features, norm, act=None)
        self.shortcut = nn.Identity()
        if inputs != 4 * features:
            self.shortcut = ConvBN(inputs, 4 * features, norm, stride=stride, act=None)

    def forward(self, inputs):
        x = self.conv3(self.conv2(self.conv1(inputs)))
        x += self.shortcut(inputs)
        x = F.relu(x, inplace=True)
        return (x, x) if self.tapped else x


class InvertedResidual(nn.Module):
    """MobileNetV2's expand → depthwise → project (linear); tapped at the depthwise output."""

    def __init__(self, inputs, features, expansion, stride, rate, norm, tapped):
        super().__init__()
        self.tapped, self.residual = tapped, stride == 1 and inputs == features
        wide, act = expansion * inputs, nn.ReLU6
        self.expand = ConvBN(inputs, wide, norm, act=act) if expansion > 1 else nn.Identity()
        self.depthwise = ConvBN(wide, wide, norm, 3, stride, rate, groups=wide, act=act)
        self.project = ConvBN(wide, features, norm, act=None)

    def forward(self, inputs):
        depthwise = self.depthwise(self.expand(inputs))
        x = self.project(depthwise)
        if self.residual:
            x += inputs
        return (x, depthwise) if self.tapped else x


class XceptionUnit(nn.Module):
    """Three separable convolutions with a ReLU before each, and a shortcut; tapped at the second.

    A ReLU stands behind the preceding convolution, where it may work in place; not the first,
    whose input the shortcut reads, nor one behind a tap. The backbone's last unit has a ReLU after
    both halves of each convolution instead, and no shortcut.
    """

    def __init__(self, inputs, features, stride, rate, norm, tapped, last):
        super().__init__()
        self.tapped, self.last = tapped, last
        self.shortcut = nn.Identity()
        if not last and (stride > 1 or inputs != features[-1]):
            self.shortcut = ConvBN(inputs, features[-1], norm, stride=stride, act=None)
        inside, strides = nn.ReLU if last else None, (1, 1, stride)
        after = (nn.ReLU, None if tapped else nn.ReLU, inside)
        for i, (outputs, step, act) in enumerate(zip(features, strides, after), start=1):
            depthwise = ConvBN(inputs, inputs, norm, 3, step, rate, groups=inputs, act=inside)
            self.add_module(f"separable_conv{i}_depthwise", depthwise)
            pointwise = ConvBN(inputs, outputs, norm, act=act)
            self.add_module(f"separable_conv{i}_pointwise", pointwise)
            inputs = outputs

    def forward(self, inputs):
        x = self.separable_conv1_depthwise(inputs if self.last else F.relu(inputs))
        x = self.separable_conv2_depthwise(self.separable_conv1_pointwise(x))
        x = second = self.separable_conv2_pointwise(x)
        if self.tapped:
            x = F.relu(x)
        x = self.separable_conv3_pointwise(self.separable_conv3_depthwise(x))
        if not self.last:
            x += self.shortcut(inputs)
        return (x, second) if self.tapped else x


def strides_and_rates(strides: Sequence[int], output_stride: int) -> list[tuple[int, int]]:
    """Strides beyond `output_stride` become atrous rates of the layers that follow."""
    plan, current, rate = [], 1, 1
    for stride in strides:
        if current * stride > output_stride:
            plan.append((1, rate))
            rate *= stride
        else:
            plan.append((stride, rate))
            current *= stride
    return plan


def resnet(counts, output_stride, norm, tap):
    units = [
        (f"block{block}_unit{unit}", 32 * 2**block, 2 if unit == 1 < block else 1)
        for block, count in enumerate(counts, start=1)
        for unit in range(1, count + 1)
    ]
    plan = strides_and_rates([2, 2, *(stride for *_, stride in units)], output_stride)[2:]
    layers, inputs = {"stem": ConvBN(3, 64, norm, 7, 2), "pool": nn.MaxPool2d(3, 2, 1)}, 64
    for (name, features, _), at in zip(units, plan):
        layers[name] = Bottleneck(inputs, features, *at, norm, tapped=name == tap)
        inputs = 4 * features
    return Backbone(layers, tap)


def mobilenet_v2(stages, output_stride, norm, tap):
    units = [(t, c, s if i == 0 else 1) for t, c, n, s in stages for i in range(n)]
    plan = strides_and_rates([2, *(stride for *_, stride in units)], output_stride)[1:]
    layers, inputs = {"stem": ConvBN(3, 32, norm, 3, 2, act=nn.ReLU6)}, 32
    for i, ((expansion, features, _), at) in enumerate(zip(units, plan)):
        tapped = tap == f"block{i}"
        layers[f"block{i}"] = InvertedResidual(inputs, features, expansion, *at, norm, tapped)
        inputs = features
    return Backbone(layers, tap)


def xception(middle_units, output_stride, norm, tap):
    units = [(f"entry_block{i}", (c,) * 3, 2) for i, c in enumerate((128, 256, 728), start=1)]
    units += [(f"middle_unit{i}", (728,) * 3, 1) for i in range(1, middle_units + 1)]
    units += [("exit_block1", (728, 1024, 1024), 2), ("exit_block2", (1536, 1536, 2048), 1)]
    plan = strides_and_rates([2, *(stride for *_, stride in units)], output_stride)[1:]
    layers, inputs = {"conv1_1": ConvBN(3, 32, norm, 3, 2), "conv1_2": ConvBN(32, 64, norm, 3)}, 64
    for (name, features, _), at in zip(units, plan):
        last = name == "exit_block2"
        layers[name] = XceptionUnit(inputs, features, *at, norm, tapped=name == tap, last=last)
        inputs = features[-1]
    return Backbone(layers, tap)


# (expansion, channels, repeats, stride)
MOBILENET_V2 = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
MOBILENET_V2 += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
# makes the backbone; (decay, epsilon) of its norms; channels; the unit to tap and its channels
BACKBONES = {
    "resnet_50": (partial(resnet, (3, 4, 6, 3)), (0.95, 1e-5), 2048, "block1_unit3", 256),
    "resnet_101": (partial(resnet, (3, 4, 23, 3)), (0.95, 1e-5), 2048, "block1_unit3", 256),
    "xception_65": (partial(xception, 16), (0.9997, 1e-3), 2048, "entry_block2", 256),
    "mobilenet_v2": (partial(mobilenet_v2, MOBILENET_V2), (0.997, 1e-3), 320, "block2", 144),
}

# --- heads -----------------------------------------------------------------------------------


class ASPP(nn.Module):
    """Image pooling, 1x1 and one 3x3 a rate, concatenated and projected to 256 channels."""

    def __init__(self, inputs, rates, separable, norm):
        super().__init__()
        self.image_pooling = ConvBN(inputs, 256, norm)
        self.conv1x1 = ConvBN(inputs, 256, norm)
        self.atrous = [f"atrous{i}" for i in range(1, len(rates) + 1)]
        for name, rate in zip(self.atrous, rates):
            self.add_module(name, conv3x3(inputs, 256, norm, separable, rate))
        self.projection = ConvBN((2 + len(rates)) * 256, 256, norm)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        pooled = self.image_pooling(F.adaptive_avg_pool2d(x, 1))
        conv1x1 = self.conv1x1(x)
        # Written out in its sibling's memory format: an expanded view would make cat return NCHW.
        pooled = torch.empty_like(conv1x1).copy_(pooled)
        branches = [pooled, conv1x1, *(getattr(self, name)(x) for name in self.atrous)]
        return self.dropout(self.projection(torch.cat(branches, dim=1)))


class Decoder(nn.Module):
    """v3+: upsample the context to the reduced low-level features, concatenate, refine."""

    def __init__(self, low_level, separable, align_corners, norm):
        super().__init__()
        self.align_corners = align_corners
        self.low_level = ConvBN(low_level, 48, norm)
        self.conv0 = conv3x3(256 + 48, 256, norm, separable)
        self.conv1 = conv3x3(256, 256, norm, separable)

    def forward(self, x, low_level):
        low_level = self.low_level(low_level)
        size = low_level.shape[2:]
        x = F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)
        return self.conv1(self.conv0(torch.cat([x, low_level], dim=1)))


class DeepLab(nn.Module):
    """Images [B, 3, H, W] → logits [B, num_classes, H/s, W/s]; without a decoder it is v3."""

    def __init__(self, backbone, aspp, decoder, num_classes):
        super().__init__()
        self.backbone, self.aspp, self.decoder = backbone, aspp, decoder
        self.logits = nn.Conv2d(256, num_classes, 1)

    def forward(self, images):
        x, low_level = self.backbone(images)
        x = self.aspp(x)
        if self.decoder is not None:
            x = self.decoder(x, low_level)
        return self.logits(x)


def build(
    name: str,
    backbone: str,
    *,
    num_classes: int = 21,
    output_stride: int = 16,
    atrous_rates: Sequence[int] | str | None = "auto",
    separable: bool = True,
    align_corners: bool = True,
) -> nn.Module:
    """The peer of `deeplab_jax.models.build` with some of its keywords; ValueError for others'."""
    if name not in ("v3", "v3plus") or backbone not in BACKBONES or output_stride not in (8, 16):
        raise ValueError(f"no peer of {name} on {backbone} at output stride {output_stride}")
    if atrous_rates == "auto":
        atrous_rates = [rate * 16 // output_stride for rate in (6, 12, 18)]
    make, (decay, epsilon), features, tap, low_level = BACKBONES[backbone]
    decoder, norm = None, partial(Norm, decay=0.9997, epsilon=1e-5)
    aspp = ASPP(features, atrous_rates or (), separable, norm)
    if name == "v3plus":
        decoder = Decoder(low_level, separable, align_corners, norm)
    norm = partial(Norm, decay=decay, epsilon=epsilon)
    encoder = make(output_stride, norm, tap if decoder else None)
    return DeepLab(encoder, aspp, decoder, num_classes)


# --- variables -------------------------------------------------------------------------------


def load_flax(module: nn.Module, variables: Mapping) -> None:
    """Copies deeplab_jax's {"params", "batch_stats"} into every parameter and buffer.

    Raises:
      ValueError: if a leaf has no place, a place has no leaf, or their shapes differ.
    """
    leaves, state = _flatten(variables), module.state_dict()
    paths = {name: _flax_path(name, place) for name, place in state.items()}
    if sorted(paths.values()) != sorted(leaves):
        raise ValueError(f"not in both: {sorted(leaves.keys() ^ set(paths.values()))}")
    for name, place in state.items():
        leaf = np.array(leaves[paths[name]])
        if leaf.ndim == 4:  # [kh, kw, I, O] → [O, I, kh, kw]
            leaf = leaf.transpose(3, 2, 0, 1)
        elif leaf.ndim == 3:  # depthwise [kh, kw, C] → [C, 1, kh, kw]
            leaf = leaf.transpose(2, 0, 1)[:, None]
        if leaf.shape != place.shape:  # copy_ would broadcast
            raise ValueError(f"{paths[name]} is {leaf.shape}, {name} {tuple(place.shape)}")
        place.copy_(torch.from_numpy(leaf))


def _flatten(tree, path=""):
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for name in tree for k, v in _flatten(tree[name], f"{path}/{name}").items()}


def _flax_path(name: str, x: torch.Tensor) -> str:
    """ "backbone.stem.conv.weight" → "/params/backbone/stem/kernel"."""
    *path, layer, leaf = name.split(".")
    if layer != "conv":  # Flax has no such level: the kernel is its ConvBN's own
        path.append(layer)
    if leaf == "weight":
        # Depthwise convolutions alone have one input channel a group.
        leaf = "scale" if x.ndim == 1 else "depthwise_kernel" if x.shape[1] == 1 else "kernel"
    collection = "batch_stats" if leaf.startswith("running_") else "params"
    return "/".join(["", collection, *path, leaf.removeprefix("running_")])
