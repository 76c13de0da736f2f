"""jfzhang95/pytorch-deeplab-xception: v3+ on ResNet-101, Xception and MobileNetV2.

Aligned corners, dense convolutions, two of them in the decoder. ResNet: multi-grid (1, 2, 4), the
whole stage dilated from its first unit. Xception: see `xception_65_jfzhang95`. MobileNetV2: pads a
block's input before the expansion, rates start with the next stage.
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

_HEAD = (
    *torch_conv_bn(r"aspp\.aspp1\.atrous_conv", r"aspp\.aspp1\.bn", "aspp/conv1x1"),
    *(
        rule
        for i in (1, 2, 3)
        for rule in torch_conv_bn(
            rf"aspp\.aspp{i + 1}\.atrous_conv", rf"aspp\.aspp{i + 1}\.bn", f"aspp/atrous{i}"
        )
    ),
    *torch_conv_bn(r"aspp\.global_avg_pool\.1", r"aspp\.global_avg_pool\.2", "aspp/image_pooling"),
    *torch_conv_bn(r"aspp\.conv1", r"aspp\.bn1", "aspp/projection", change=last_branch_first),
    *torch_conv_bn(r"decoder\.conv1", r"decoder\.bn1", "decoder/low_level"),
    *torch_conv_bn(r"decoder\.last_conv\.0", r"decoder\.last_conv\.1", "decoder/conv0"),
    *torch_conv_bn(r"decoder\.last_conv\.4", r"decoder\.last_conv\.5", "decoder/conv1"),
    *torch_conv_bias(r"decoder\.last_conv\.8", "logits"),
    TORCH_COUNTERS,
)


def _xception() -> tuple:
    """Blocks 1 to 3 are the entry flow, 4 to 19 the middle, 20 and conv3..5 the exit."""
    rules = [
        *torch_conv_bn(r"backbone\.conv1", r"backbone\.bn1", "backbone/conv1_1"),
        *torch_conv_bn(r"backbone\.conv2", r"backbone\.bn2", "backbone/conv1_2"),
    ]
    for block in range(1, 21):
        if block <= 3:
            ours = f"backbone/entry_block{block}"
        else:
            ours = "backbone/exit_block1" if block == 20 else f"backbone/middle_unit{block - 3}"
        # The Sequential begins with a ReLU, which blocks 1 and 2 lack.
        first = 0 if block <= 2 else 1
        at = rf"backbone\.block{block}"
        for i in (1, 2, 3):
            position = first + 3 * (i - 1)
            rules += _separable(
                rf"{at}\.rep\.{position}",
                rf"{at}\.rep\.{position + 1}",
                f"{ours}/separable_conv{i}",
            )
        rules += torch_conv_bn(rf"{at}\.skip", rf"{at}\.skipbn", f"{ours}/shortcut")
    for i in (1, 2, 3):
        rules += _separable(
            rf"backbone\.conv{i + 2}",
            rf"backbone\.bn{i + 2}",
            f"backbone/exit_block2/separable_conv{i}",
        )
    return tuple(rules)


def _separable(conv: str, norm: str, ours: str) -> tuple:
    return (
        *torch_conv_bn(rf"{conv}\.conv1", rf"{conv}\.bn", f"{ours}_depthwise", "depthwise"),
        *torch_conv_bn(rf"{conv}\.pointwise", norm, f"{ours}_pointwise"),
    )


# Its MobileNetV2 lists every tensor twice; the two halves are what it computes with.
_MOBILENET = (
    *torch_backbones.mobilenet_v2(r"backbone\.(?:low|high)_level_features\.", torch_backbones.FLAT),
    skip(
        r"backbone\.features\..*(weight|bias|running_mean|running_var)",
        "second names of the same tensors",
    ),
)


def _infer(backbone: dict):
    def infer(shapes: Shapes) -> dict:
        return backbone | {
            "name": "v3plus",
            "num_classes": shapes["decoder.last_conv.8.weight"][0],
            "output_stride": 16,
            "separable": False,
            "aspp_channels": shapes["aspp.conv1.weight"][0],
            "dropout": 0.5,
            "decoder_output_stride": 4,
            "decoder_channels": shapes["decoder.last_conv.0.weight"][0],
            "decoder_convs": 2,
            "low_level_channels": shapes["decoder.conv1.weight"][0],
            "align_corners": True,
            "batch_norm_decay": 0.9,
        }

    return infer


LAYOUTS = tuple(
    Layout(
        name=f"jfzhang95 DeepLabv3+ {name}",
        signature=(first, r"aspp\.aspp1\.atrous_conv\.weight"),
        rules=(*trunk, *_HEAD),
        infer=_infer(backbone),
        normalization="imagenet",
    )
    for name, first, trunk, backbone in (
        (
            "ResNet-101",
            r"backbone\.layer3\.22\.conv3\.weight",
            torch_backbones.resnet(r"backbone\."),
            {"backbone": "resnet_101", "multi_grid": (1, 2, 4), "dilation_start": "at"},
        ),
        (
            "Xception",
            r"backbone\.block20\.rep\.1\.conv1\.weight",
            _xception(),
            {"backbone": "xception_65_jfzhang95", "batch_norm_epsilon": 1e-5},
        ),
        (
            "MobileNetV2",
            r"backbone\.low_level_features\.0\.0\.weight",
            _MOBILENET,
            {
                "backbone": "mobilenet_v2",
                "padding": "block",
                "low_level": "output",
                "dilation_start": "next_stage",
                "batch_norm_epsilon": 1e-5,
            },
        ),
    )
)
