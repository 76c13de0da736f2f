"""kazuto1011/deeplab-pytorch: v2 ResNet-101 with multi-scale inputs, v3, v3+, and v1 as a trunk.

The original ResNet (stride in the first 1x1), every unit of a dilated stage dilated, half-pixel
centres, mean-subtracted BGR. The prefix "base." tells that the model was made for several scales.
"""

import re

from deeplab_jax.importers import torch_backbones
from deeplab_jax.importers.table import (
    TORCH_COUNTERS,
    Layout,
    Shapes,
    last_branch_first,
    skip,
    torch_conv_bias,
    torch_conv_bn,
)

_CONVS = {"reduce": "conv1", "conv3x3": "conv2", "increase": "conv3", "shortcut": "shortcut"}


def _conv(name: str, ours, change=None) -> tuple:
    return torch_conv_bn(
        rf"(?:base\.)?{name}\.conv", rf"(?:base\.)?{name}\.bn", ours, change=change
    )


def _unit(name: str):
    return lambda match: f"backbone/block{int(match[1]) - 1}_unit{match[2]}/{name}"


_BACKBONE = (
    *_conv(r"layer1\.conv1", "backbone/stem"),
    *(
        rule
        for theirs, ours in _CONVS.items()
        for rule in _conv(rf"layer([2-5])\.block(\d+)\.{theirs}", _unit(ours))
    ),
    TORCH_COUNTERS,
)
_V2 = tuple(
    rule for i in range(4) for rule in torch_conv_bias(rf"(?:base\.)?aspp\.c{i}", f"logits{i + 1}")
)
_ASPP = (
    *_conv(r"aspp\.stages\.c0", "aspp/conv1x1"),
    *_conv(r"aspp\.stages\.c([123])", r"aspp/atrous\1"),
    *_conv(r"aspp\.stages\.imagepool\.conv", "aspp/image_pooling"),
    *_conv(r"fc1", "aspp/projection", last_branch_first),
)
_V3 = (*_ASPP, *torch_conv_bias(r"(?:base\.)?fc2", "logits"))
_V3PLUS = (
    *_ASPP,
    *_conv(r"reduce", "decoder/low_level"),
    *_conv(r"fc2\.conv1", "decoder/conv0"),
    *_conv(r"fc2\.conv2", "decoder/conv1"),
    *torch_conv_bias(r"(?:base\.)?fc2\.conv3", "logits"),
)


def _infer(head: dict, logits: str):
    def infer(shapes: Shapes) -> dict:
        name = next(name for name in shapes if re.fullmatch(rf"(base\.)?{logits}\.weight", name))
        unit = r"(base\.)?layer4\.block\d+\.reduce\.conv\.weight"
        found = head | {
            "backbone": torch_backbones.by_depth(shapes, unit, "_caffe"),
            "num_classes": shapes[name][0],
            "align_corners": False,
            "batch_norm_decay": 0.999,
        }
        return found | ({"input_scales": (1.0, 0.5, 0.75)} if name.startswith("base.") else {})

    return infer


_V3_HEAD = {
    "output_stride": 8,
    "multi_grid": (1, 2, 4),
    "separable": False,
    "aspp_channels": 256,
}
LAYOUTS = (
    Layout(
        name="kazuto1011 DeepLabv2 ResNet",
        signature=(r"(base\.)?layer1\.conv1\.conv\.weight", r"(base\.)?aspp\.c0\.weight"),
        rules=(*_BACKBONE, *_V2),
        infer=_infer(
            {"name": "v2", "output_stride": 8, "atrous_rates": (6, 12, 18, 24)}, r"aspp\.c0"
        ),
        normalization="caffe_bgr",
    ),
    Layout(
        name="kazuto1011 DeepLabv3 ResNet",
        signature=(r"(base\.)?layer1\.conv1\.conv\.weight", r"(base\.)?fc2\.weight"),
        rules=(*_BACKBONE, *_V3),
        infer=_infer({"name": "v3"} | _V3_HEAD, r"fc2"),
        normalization="caffe_bgr",
    ),
    Layout(
        name="kazuto1011 DeepLabv3+ ResNet",
        signature=(r"(base\.)?layer1\.conv1\.conv\.weight", r"(base\.)?fc2\.conv3\.weight"),
        rules=(*_BACKBONE, *_V3PLUS),
        infer=_infer(
            {
                "name": "v3plus",
                "decoder_output_stride": 4,
                "decoder_convs": 2,
                "fuse_upsampled": True,
            }
            | _V3_HEAD,
            r"fc2\.conv3",
        ),
        normalization="caffe_bgr",
    ),
    Layout(
        name="kazuto1011 ResNet with a 1x1 classifier, as a trunk",
        signature=(r"(base\.)?layer1\.conv1\.conv\.weight", r"(base\.)?fc\.weight"),
        rules=(*_BACKBONE, skip(r"(base\.)?fc\.(weight|bias)", "the 1x1 classifier")),
        infer=_infer({"name": "v2", "output_stride": 8, "atrous_rates": (6, 12, 18, 24)}, r"fc"),
        normalization="caffe_bgr",
        trunk=True,
        note="They need data.normalization=caffe_bgr",
    ),
)
