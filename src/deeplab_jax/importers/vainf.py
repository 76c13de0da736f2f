"""VainF/DeepLabV3Plus-Pytorch: v3 and v3+ on ResNet-50/101 and MobileNetV2.

torchvision's ResNet and rate rule, rates that follow the output stride, half-pixel centres. Its
MobileNetV2 pads a block's input before the expansion, and its stem not at all. With its option
--separable_conv the head's 3x3 convolutions are pairs `body.0`, `body.1`, no batch norm between.
"""

import numpy as np

from deeplab_jax.importers import torch_backbones
from deeplab_jax.importers.table import (
    TORCH_COUNTERS,
    Layout,
    Shapes,
    dense,
    same,
    torch_conv_bias,
    torch_conv_bn,
    torch_separable_bn,
)
from deeplab_jax.importers.torchvision import aspp

_RESNET = torch_backbones.resnet(r"backbone\.")
_MOBILENET = torch_backbones.mobilenet_v2(
    r"backbone\.(?:low|high)_level_features\.", torch_backbones.NESTED
)


def _low_level_last(kernel):
    """The decoder's concat: theirs is [low-level, ASPP], ours [ASPP, low-level]."""
    return np.roll(kernel, -48, axis=2)  # the low-level channels, fixed in their code


def _conv3x3(conv: str, norm: str, ours: str, separable: bool, then=same) -> tuple:
    """A 3x3 convolution of the head, whole or in two halves."""
    if separable:
        return torch_separable_bn(rf"{conv}\.body", norm, ours, then)
    return torch_conv_bn(conv, norm, ours, change=lambda array: then(dense(array)))


def _aspp(prefix: str, separable: bool) -> tuple:
    if not separable:
        return aspp(prefix)
    atrous = _conv3x3(
        rf"{prefix}convs\.([123])\.0", rf"{prefix}convs\.([123])\.1", r"aspp/atrous\1", True
    )
    return (*aspp(prefix, atrous=False), *atrous)


def _v3plus(separable: bool) -> tuple:
    return (
        *_aspp(r"classifier\.aspp\.", separable),
        *torch_conv_bn(r"classifier\.project\.0", r"classifier\.project\.1", "decoder/low_level"),
        *_conv3x3(
            r"classifier\.classifier\.0",
            r"classifier\.classifier\.1",
            "decoder/conv0",
            separable,
            _low_level_last,
        ),
        *torch_conv_bias(r"classifier\.classifier\.3", "logits"),
    )


def _v3(separable: bool) -> tuple:
    at = r"classifier\.classifier\."
    return (
        *_aspp(rf"{at}0\.", separable),
        *_conv3x3(rf"{at}1", rf"{at}2", "aspp/conv0", separable),
        *torch_conv_bias(rf"{at}4", "logits"),
    )


def _infer(shapes: Shapes) -> dict:
    v3plus = "classifier.project.0.weight" in shapes
    head = "classifier.aspp." if v3plus else "classifier.classifier.0."
    logits = "classifier.classifier.3.weight" if v3plus else "classifier.classifier.4.weight"
    separable = f"{head}convs.1.0.body.0.weight" in shapes
    found = {
        "num_classes": shapes[logits][0],
        "output_stride": 16,
        "separable": separable,
        "depthwise_norm": not separable,
        "aspp_channels": shapes[f"{head}project.0.weight"][0],
        "align_corners": False,
        "batch_norm_decay": 0.9,
    }
    if v3plus:
        found |= {
            "name": "v3plus",
            "decoder_output_stride": 4,
            "decoder_channels": shapes["classifier.classifier.1.weight"][0],
            "decoder_convs": 1,
            "low_level_channels": shapes["classifier.project.0.weight"][0],
        }
    else:
        found |= {"name": "v3", "aspp_convs": 1}
    if "backbone.conv1.weight" in shapes:
        return found | {"backbone": torch_backbones.resnet_name(shapes, "backbone.")}
    return found | {
        "backbone": "mobilenet_v2",
        "padding": "block_bare_stem",
        "low_level": "output",
        "batch_norm_epsilon": 1e-5,
    }


def _layouts():
    heads = (
        ("DeepLabv3", r"classifier\.classifier\.0\.", _v3),
        ("DeepLabv3+", r"classifier\.aspp\.", _v3plus),
    )
    trunks = (
        ("ResNet", r"backbone\.layer4\.2\.conv3\.weight", _RESNET),
        ("MobileNetV2", r"backbone\.low_level_features\.0\.0\.weight", _MOBILENET),
    )
    for model, head, rules in heads:
        for backbone, first, trunk in trunks:
            for separable, branch in (
                (True, r"convs\.1\.0\.body\.0\.weight"),
                (False, r"convs\.1\.0\.weight"),
            ):
                yield Layout(
                    name=f"VainF {model} {backbone}" + (", separable" if separable else ""),
                    signature=(first, head + branch),
                    rules=(*trunk, *rules(separable), TORCH_COUNTERS),
                    infer=_infer,
                    normalization="imagenet",
                )


LAYOUTS = tuple(_layouts())
