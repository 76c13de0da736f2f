"""torchvision's deeplabv3_resnet50/101, deeplabv3_mobilenet_v3_large and fcn_resnet50/101.

Output stride 8 (MobileNetV3: 16), ASPP rates 12, 24, 36 at either, a 3x3 convolution behind the
ASPP, half-pixel centres. The auxiliary head of training is left out.
"""

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

_SKIPPED = (
    skip(
        r"aux_classifier\..*(weight|bias|running_mean|running_var)",
        "the auxiliary head of training",
    ),
    TORCH_COUNTERS,
)


def aspp(prefix: str, atrous: bool = True) -> tuple:
    """The ASPP's table, shared by the ports that keep torchvision's names.

    Args:
      prefix: of the names, a regular expression.
      atrous: False leaves the 3x3 branches to the caller.
    """
    branches = torch_conv_bn(
        rf"{prefix}convs\.([123])\.0", rf"{prefix}convs\.([123])\.1", r"aspp/atrous\1"
    )
    return (
        *(branches if atrous else ()),
        *torch_conv_bn(rf"{prefix}convs\.0\.0", rf"{prefix}convs\.0\.1", "aspp/conv1x1"),
        *torch_conv_bn(rf"{prefix}convs\.4\.1", rf"{prefix}convs\.4\.2", "aspp/image_pooling"),
        *torch_conv_bn(
            rf"{prefix}project\.0",
            rf"{prefix}project\.1",
            "aspp/projection",
            change=last_branch_first,
        ),
    )


_DEEPLAB = (
    *aspp(r"classifier\.0\."),
    *torch_conv_bn(r"classifier\.1", r"classifier\.2", "aspp/conv0"),
    *torch_conv_bias(r"classifier\.4", "logits"),
)
_FCN = (
    *torch_conv_bn(r"classifier\.0", r"classifier\.1", "conv"),
    *torch_conv_bias(r"classifier\.4", "logits"),
)


def _deeplab(shapes: Shapes) -> dict:
    return {
        "name": "v3",
        "num_classes": shapes["classifier.4.weight"][0],
        "atrous_rates": (12, 24, 36),
        "separable": False,
        "aspp_channels": shapes["classifier.0.project.0.weight"][0],
        "aspp_convs": 1,
        "dropout": 0.5,
        "align_corners": False,
        "batch_norm_decay": 0.9,
    }


def _infer_resnet(shapes: Shapes) -> dict:
    backbone = torch_backbones.resnet_name(shapes, "backbone.")
    return _deeplab(shapes) | {"backbone": backbone, "output_stride": 8}


def _infer_mobilenet(shapes: Shapes) -> dict:
    return _deeplab(shapes) | {
        "backbone": "mobilenet_v3_large",
        "output_stride": 16,
        "padding": "fixed",
        "dilation_start": "at",
    }


def _infer_fcn(shapes: Shapes) -> dict:
    return {
        "name": "fcn",
        "backbone": torch_backbones.resnet_name(shapes, "backbone."),
        "num_classes": shapes["classifier.4.weight"][0],
        "output_stride": 8,
        "align_corners": False,
        "batch_norm_decay": 0.9,
    }


LAYOUTS = (
    Layout(
        name="torchvision DeepLabv3 ResNet",
        signature=(r"backbone\.conv1\.weight", r"classifier\.0\.project\.0\.weight"),
        rules=(*torch_backbones.resnet(r"backbone\."), *_DEEPLAB, *_SKIPPED),
        infer=_infer_resnet,
        normalization="imagenet",
    ),
    Layout(
        name="torchvision DeepLabv3 MobileNetV3 large",
        signature=(r"backbone\.16\.0\.weight", r"classifier\.0\.project\.0\.weight"),
        rules=(*torch_backbones.mobilenet_v3_large(r"backbone\."), *_DEEPLAB, *_SKIPPED),
        infer=_infer_mobilenet,
        normalization="imagenet",
    ),
    Layout(
        name="torchvision FCN ResNet",
        signature=(r"backbone\.conv1\.weight", r"classifier\.0\.weight"),
        rules=(*torch_backbones.resnet(r"backbone\."), *_FCN, *_SKIPPED),
        infer=_infer_fcn,
        normalization="imagenet",
    ),
)
