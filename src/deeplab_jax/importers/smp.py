"""segmentation_models_pytorch DeepLabV3 and DeepLabV3Plus on ResNet-50/101.

Rates 12, 24, 36 at either output stride; the whole last stages are dilated, from their first
unit; no batch norm inside a separable convolution; corners aligned.
"""

from deeplab_jax.importers import torch_backbones
from deeplab_jax.importers.table import (
    TORCH_COUNTERS,
    Layout,
    Shapes,
    skip,
    torch_conv_bias,
    torch_conv_bn,
    torch_separable_bn,
)
from deeplab_jax.importers.torchvision import aspp

_COMMON = (
    *torch_backbones.resnet(r"encoder\."),
    *torch_conv_bias(r"segmentation_head\.0", "logits"),
    skip(r"encoder\.fc\..*", "the ImageNet classifier"),
    skip(r"classification_head\..*", "the auxiliary classifier"),
    TORCH_COUNTERS,
)


_ASPP = r"decoder\.aspp\.0\."
_V3PLUS = (
    *aspp(_ASPP, atrous=False),
    *torch_separable_bn(
        rf"{_ASPP}convs\.([123])\.0", rf"{_ASPP}convs\.([123])\.1", r"aspp/atrous\1"
    ),
    *torch_separable_bn(r"decoder\.aspp\.1", r"decoder\.aspp\.2", "aspp/conv0"),
    *torch_conv_bn(r"decoder\.block1\.0", r"decoder\.block1\.1", "decoder/low_level"),
    *torch_separable_bn(r"decoder\.block2\.0", r"decoder\.block2\.1", "decoder/conv0"),
)
_V3 = (*aspp(r"decoder\.aspp\."), *torch_conv_bn(r"decoder\.conv", r"decoder\.bn", "aspp/conv0"))


def _head(shapes: Shapes) -> dict:
    return {
        "backbone": torch_backbones.resnet_name(shapes, "encoder."),
        "num_classes": shapes["segmentation_head.0.weight"][0],
        "atrous_rates": (12, 24, 36),
        "dilation_start": "at",
        "aspp_convs": 1,
        "dropout": 0.5,
        "align_corners": True,
        "batch_norm_decay": 0.9,
    }


def _infer_v3(shapes: Shapes) -> dict:
    channels = shapes["decoder.aspp.project.0.weight"][0]
    return _head(shapes) | {
        "name": "v3",
        "output_stride": 8,
        "separable": False,
        "aspp_channels": channels,
    }


def _infer_v3plus(shapes: Shapes) -> dict:
    return _head(shapes) | {
        "name": "v3plus",
        "output_stride": 16,
        "separable": True,
        "depthwise_norm": False,
        "aspp_channels": shapes["decoder.aspp.0.project.0.weight"][0],
        "decoder_output_stride": 4,
        "decoder_channels": shapes["decoder.block2.0.1.weight"][0],
        "decoder_convs": 1,
        "low_level_channels": shapes["decoder.block1.0.weight"][0],
    }


LAYOUTS = (
    Layout(
        name="segmentation_models_pytorch DeepLabV3 ResNet",
        signature=(r"encoder\.conv1\.weight", r"decoder\.aspp\.project\.0\.weight"),
        rules=(*_COMMON, *_V3),
        infer=_infer_v3,
        normalization="imagenet",
    ),
    Layout(
        name="segmentation_models_pytorch DeepLabV3Plus ResNet",
        signature=(r"encoder\.conv1\.weight", r"decoder\.aspp\.0\.project\.0\.weight"),
        rules=(*_COMMON, *_V3PLUS),
        infer=_infer_v3plus,
        normalization="imagenet",
    ),
)
