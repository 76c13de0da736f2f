"""Google's DeepLab checkpoints (tensorflow/models, research/deeplab): TF-slim names, HWIO."""

import re

from deeplab_jax.errors import WeightsError
from deeplab_jax.importers.table import Layout, Rule, Shapes, same, skip


def depthwise(array):
    return array[..., 0]  # [kh, kw, C, 1] → [kh, kw, C]


_MODULE = r"xception_module/(separable_conv\d_(?:depthwise|pointwise)|shortcut)"
# our module : its scope in TensorFlow
BACKBONES = {
    r"xception_\d+/entry_flow/(conv1_[12])": r"backbone/\1",
    rf"xception_\d+/entry_flow/block(\d)/unit_1/{_MODULE}": r"backbone/entry_block\1/\2",
    rf"xception_\d+/middle_flow/block1/unit_(\d+)/{_MODULE}": r"backbone/middle_unit\1/\2",
    rf"xception_\d+/exit_flow/block(\d)/unit_1/{_MODULE}": r"backbone/exit_block\1/\2",
    r"resnet_v1_\d+/(conv1_[123])": r"backbone/\1",
    r"resnet_v1_\d+/conv1": r"backbone/stem",
    r"resnet_v1_\d+/block(\d)/unit_(\d+)/bottleneck_v1/(conv[123]|shortcut)": (
        r"backbone/block\1_unit\2/\3"
    ),
    r"MobilenetV[23]/Conv": r"backbone/stem",
    r"MobilenetV[23]/expanded_conv/(depthwise|project)": r"backbone/block0/\1",
    r"MobilenetV[23]/expanded_conv_(\d+)/(expand|depthwise|project)": r"backbone/block\1/\2",
    r"MobilenetV3/expanded_conv/squeeze_excite/Conv": r"backbone/block0/squeeze_excite/squeeze",
    r"MobilenetV3/expanded_conv/squeeze_excite/Conv_1": r"backbone/block0/squeeze_excite/excite",
    r"MobilenetV3/expanded_conv_(\d+)/squeeze_excite/Conv": (
        r"backbone/block\1/squeeze_excite/squeeze"
    ),
    r"MobilenetV3/expanded_conv_(\d+)/squeeze_excite/Conv_1": (
        r"backbone/block\1/squeeze_excite/excite"
    ),
    r"MobilenetV3/Conv_1": r"backbone/last",
}
ASPP = {
    r"image_pooling": r"aspp/image_pooling",
    r"aspp0": r"aspp/conv1x1",
    r"aspp([1-9])": r"aspp/atrous\1",
    r"aspp([1-9])_(depthwise|pointwise)": r"aspp/atrous\1/\2",
    r"concat_projection": r"aspp/projection",
    r"meta_architecture/branch(\d)_(depthwise|pointwise)": r"cell/branch\1/\2",
    r"meta_architecture/concat_projection": r"cell/projection",
    r"decoder/feature_projection0": r"decoder/low_level",
    r"decoder/decoder_conv0/decoder_conv0_1": r"decoder/conv0",  # dense, named by slim.repeat
    r"decoder/decoder_conv0/decoder_conv0_2": r"decoder/conv1",
    r"decoder/decoder_conv(\d)_(depthwise|pointwise)": r"decoder/conv\1/\2",
    r"logits/semantic": r"logits",
}
LRASPP = {
    r"image_pooling": r"image_pooling",
    r"aspp0": r"conv1x1",
    r"decoder/decoder_conv0": r"logits_context",
    r"decoder/feature_projection0": r"logits_low_level",
}
V2 = {r"logits/semantic": "logits1"} | {
    rf"logits/semantic_{i}": f"logits{i + 1}" for i in range(1, 8)
}
SKIPPED = (
    skip(r"global_step", "the step counter"),
    skip(r".*/(Momentum|Adam(_1)?|RMSProp(_1)?|ExponentialMovingAverage)", "the optimizer's slots"),
    skip(r"beta[12]_power", "the optimizer's slots"),
    skip(r"(resnet_v1_\d+|xception_\d+)/logits/.*", "the ImageNet classifier"),
    skip(r"MobilenetV[23]/(Logits|Predictions)/.*", "the ImageNet classifier"),
    skip(r"MobilenetV2/Conv_1/.*", "the classifier's 1280 channels"),
    skip(r"MobilenetV3/Conv_2/.*", "the classifier's 1280 channels"),
)
# leaf in TensorFlow: (collection, our leaf, change)
LEAVES = {
    "weights": ("params", "kernel", same),
    "depthwise_weights": ("params", "depthwise_kernel", depthwise),
    "biases": ("params", "bias", same),
    "BatchNorm/gamma": ("params", "norm/scale", same),
    "BatchNorm/beta": ("params", "norm/bias", same),
    "BatchNorm/moving_mean": ("batch_stats", "norm/mean", same),
    "BatchNorm/moving_variance": ("batch_stats", "norm/var", same),
}


def _rules(head: dict[str, str]) -> tuple[Rule, ...]:
    modules = BACKBONES | head
    return SKIPPED + tuple(
        Rule(f"{scope}/{leaf}", f"{collection}/{ours}/{name}", change)
        for scope, ours in modules.items()
        for leaf, (collection, name, change) in LEAVES.items()
    )


def _infer(shapes: Shapes) -> dict:
    """Backbone from the scopes, head from the variables that are there."""
    scope = next(name.split("/")[0] for name in shapes if re.match(_SCOPES, name))
    found = {"backbone": _backbone(scope, shapes), "output_stride": 16, "align_corners": True}
    if scope.startswith("Mobilenet"):
        if scope == "MobilenetV2":
            found["width_multiplier"] = width_of(shapes)
        else:
            found["output_stride"] = 32
    if scope.startswith("resnet"):
        found["multi_grid"] = (1, 2, 4)  # of the published checkpoints
    if "image_pooling/biases" in shapes:
        return found | {
            "name": "v3plus",
            "context": "lraspp",
            "atrous_rates": None,
            "aspp_channels": shapes["aspp0/weights"][-1],
            "decoder_output_stride": _decoder_stride(found, shapes),
            "num_classes": shapes["decoder/decoder_conv0/weights"][-1],
            "image_pooling_crop_size": (769, 769),
            "image_pooling_stride": (4, 5),
        }
    found["name"] = "v3"
    if "logits/semantic/weights" in shapes:
        found["num_classes"] = shapes["logits/semantic/weights"][-1]
    if "meta_architecture/concat_projection/weights" in shapes:
        found |= {"context": "dpc", "atrous_rates": None}
        found["aspp_channels"] = shapes["meta_architecture/concat_projection/weights"][-1]
    elif "logits/semantic/weights" in shapes:
        found["image_pooling"] = "image_pooling/weights" in shapes
        found["aspp_channels"] = shapes["aspp0/weights"][-1]
        found["separable"] = "aspp1_depthwise/depthwise_weights" in shapes
        if not found["separable"] and "aspp1/weights" not in shapes:
            found["atrous_rates"] = None
    if "decoder/feature_projection0/weights" in shapes:
        dense = [f"decoder/decoder_conv0/decoder_conv0_{i}/weights" for i in (1, 2)]
        separable = dense[0] not in shapes
        convs = (
            [f"decoder/decoder_conv{i}_pointwise/weights" for i in (0, 1)] if separable else dense
        )
        found |= {
            "name": "v3plus",
            "decoder_output_stride": _decoder_stride(found, shapes),
            "low_level_channels": shapes["decoder/feature_projection0/weights"][-1],
            "decoder_channels": shapes[convs[0]][-1],
            "decoder_convs": sum(name in shapes for name in convs),
            "decoder_separable": separable,
        }
    return found


def _infer_v2(shapes: Shapes) -> dict:
    """One classifier a rate, right on the backbone."""
    kernels = [n for n in shapes if re.fullmatch(r"logits/semantic(_\d)?/weights", n)]
    height, width, _, classes = shapes["logits/semantic/weights"]
    plain = (height, width, len(kernels)) == (1, 1, 1)
    if (height, width) != (3, 3) and not plain:
        raise WeightsError(
            f"its classifier is {height}x{width} right on the backbone, which no model here has"
        )
    # One 3x3 classifier is LargeFOV's ([V2] Sec. 4.1.2).
    rates = (12,) if len(kernels) == 1 else (6, 12, 18, 24)[: len(kernels)]
    scope = next(name.split("/")[0] for name in shapes if re.match(_SCOPES, name))
    return {
        "name": "v2",
        "backbone": _backbone(scope, shapes),
        "num_classes": classes,
        "output_stride": 8,
        "atrous_rates": None if plain else rates,
        "align_corners": True,
    } | ({"width_multiplier": width_of(shapes)} if scope == "MobilenetV2" else {})


_SCOPES = r"(xception_\d+|resnet_v1_\d+|MobilenetV[23])/"


def _backbone(scope: str, shapes: Shapes) -> str:
    if scope == "MobilenetV2":
        return "mobilenet_v2"
    if scope == "MobilenetV3":
        size = "large" if "MobilenetV3/expanded_conv_14/project/weights" in shapes else "small"
        full = {"large": 960, "small": 576}[size]
        seg = "" if shapes["MobilenetV3/Conv_1/weights"][-1] == full else "_seg"
        return f"mobilenet_v3_{size}{seg}"
    if scope.startswith("resnet"):
        if scope not in ("resnet_v1_50", "resnet_v1_101"):
            raise WeightsError(f"its backbone is {scope}; known are resnet_v1_50 and resnet_v1_101")
        beta = f"{scope}/conv1_1/weights" in shapes
        return scope.replace("resnet_v1", "resnet") + ("_beta" if beta else "_slim")
    return scope


# Channels of what the decoder may tap, at output strides 4, 8 and 16.
_LOW_LEVEL = {
    "xception": (256, 728, 1024),
    "resnet": (256, 512, 1024),
    "mobilenet_v2": (144, 192, 576),
    "mobilenet_v3_large": (72, 120, 672),
    "mobilenet_v3_small": (16, 72, 144),
}


def _decoder_stride(found: dict, shapes: Shapes) -> int:
    """The stride whose tap has about as many channels as the decoder reads."""
    channels = shapes["decoder/feature_projection0/weights"][2]
    taps = next(taps for name, taps in _LOW_LEVEL.items() if found["backbone"].startswith(name))
    wide = channels / found.get("width_multiplier", 1)
    return (4, 8, 16)[min(range(3), key=lambda i: abs(taps[i] - wide))]


def width_of(shapes: Shapes, kernel: str = "weights") -> float:
    """The MobileNetV2 multiplier whose rounded widths are the stem's and the last block's.

    `kernel` is the last part of a convolution's name.
    """
    stem = shapes[f"MobilenetV2/Conv/{kernel}"][-1]
    last = shapes[f"MobilenetV2/expanded_conv_16/project/{kernel}"][-1]
    widths = [w / 100 for w in range(10, 201, 5)]
    fitting = [w for w in widths if (int(32 * w + 0.5), int(320 * w + 0.5)) == (stem, last)]
    return fitting[0] if fitting else last / 320


def _normalization(keywords) -> str:
    return "imagenet_mean" if keywords["backbone"].endswith("_slim") else "zero_mean"


_COMMON = {"infer": _infer, "normalization": _normalization}
_CONTEXT = (r"concat_projection/.*", r"meta_architecture/.*", r"aspp0/.*")
_HEAD = r"logits/semantic/weights"
LAYOUTS = (
    Layout(
        name="TensorFlow DeepLabv2-style sum of classifiers",
        signature=(_SCOPES + r".*/BatchNorm/moving_mean", _HEAD),
        absent=_CONTEXT,
        rules=_rules(V2),
        **_COMMON | {"infer": _infer_v2},
    ),
    Layout(
        name="TensorFlow DeepLab",
        signature=(_SCOPES + r".*/BatchNorm/moving_mean", _HEAD),
        rules=_rules(ASPP),
        **_COMMON,
    ),
    Layout(
        name="TensorFlow DeepLab MobileNetV3",
        signature=(r"MobilenetV3/.*", r"image_pooling/biases"),
        rules=_rules(LRASPP),
        **_COMMON,
    ),
    Layout(
        name="TensorFlow ImageNet checkpoint, as a trunk",
        signature=(_SCOPES + r".*/BatchNorm/moving_mean",),
        rules=_rules({}),
        trunk=True,
        **_COMMON,
    ),
)
