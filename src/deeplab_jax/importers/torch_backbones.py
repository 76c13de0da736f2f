"""PyTorch's backbones: their tables, shared by the sources that build on them, and as trunks.

torchvision counts units from 0, ours count from 1.
"""

import re

from deeplab_jax.errors import WeightsError
from deeplab_jax.importers.table import (
    TORCH_COUNTERS,
    Layout,
    Shapes,
    skip,
    torch_conv_bias,
    torch_conv_bn,
)

# --- ResNet ----------------------------------------------------------------------------------


def resnet(prefix: str) -> tuple:
    """torchvision's ResNet-50/101 under `prefix`, a regular expression."""

    def unit(match):
        return f"backbone/block{match['block']}_unit{int(match['unit']) + 1}"

    at = rf"{prefix}layer(?P<block>\d)\.(?P<unit>\d+)\."
    return (
        *torch_conv_bn(f"{prefix}conv1", f"{prefix}bn1", "backbone/stem"),
        *(
            rule
            for i in (1, 2, 3)
            for rule in torch_conv_bn(
                f"{at}conv{i}", f"{at}bn{i}", lambda m, i=i: f"{unit(m)}/conv{i}"
            )
        ),
        *torch_conv_bn(
            rf"{at}downsample\.0", rf"{at}downsample\.1", lambda m: f"{unit(m)}/shortcut"
        ),
    )


def resnet_name(shapes: Shapes, prefix: str = "") -> str:
    """resnet_50 or resnet_101, see `by_depth`."""
    return by_depth(shapes, rf"{re.escape(prefix)}layer3\.\d+\.conv3\.weight")


def by_depth(shapes: Shapes, unit: str, suffix: str = "") -> str:
    """The ResNet with as many units in its third block as names that match `unit`.

    Raises:
      WeightsError: if there is none: ResNet-18, 34 and 152 are no backbones here.
    """
    units = sum(re.fullmatch(unit, name) is not None for name in shapes)
    depths = {6: "resnet_50", 23: "resnet_101"}
    if units not in depths:
        raise WeightsError(
            f"its ResNet has {units} bottleneck units in the third block; known are ResNet-50 (6) "
            "and ResNet-101 (23)"
        )
    return depths[units] + suffix


# --- MobileNetV2 -----------------------------------------------------------------------------

# position in the block's Sequential: (convolution, batch norm) of expand, depthwise, project
FLAT = (("0", "1"), ("3", "4"), ("6", "7"))
NESTED = (("0.0", "0.1"), ("1.0", "1.1"), ("2", "3"))
_LAYERS = ("expand", "depthwise", "project")


def mobilenet_v2(prefix: str, positions) -> tuple:
    """MobileNetV2 whose layers are numbered from the stem, 0, under `prefix`, a regular expression.

    Args:
      prefix: of the names.
      positions: `FLAT` or `NESTED`, where a block's layers stand in it.
    """
    rules = [*torch_conv_bn(rf"{prefix}0\.0", rf"{prefix}0\.1", "backbone/stem")]
    for layer in range(1, 18):
        names = _LAYERS[1:] if layer == 1 else _LAYERS  # the first block does not expand
        for name, (conv, norm) in zip(names, _first(positions) if layer == 1 else positions):
            rules += torch_conv_bn(
                rf"{prefix}{layer}\.conv\.{re.escape(conv)}",
                rf"{prefix}{layer}\.conv\.{re.escape(norm)}",
                f"backbone/block{layer - 1}/{name}",
                "depthwise" if name == "depthwise" else "dense",
            )
    return tuple(rules)


def _first(positions):
    return (("0", "1"), ("3", "4")) if positions is FLAT else (("0.0", "0.1"), ("1", "2"))


# --- MobileNetV3 large -----------------------------------------------------------------------


def mobilenet_v3_large(prefix: str) -> tuple:
    """torchvision's MobileNetV3 large under `prefix`, a regular expression."""

    def block(match):
        return f"backbone/block{int(match['block']) - 1}"

    def layers(blocks: str, names: dict[str, str]):
        at = rf"{prefix}(?P<block>{blocks})\.block\."
        return tuple(
            rule
            for position, name in names.items()
            for rule in torch_conv_bn(
                rf"{at}{position}\.0",
                rf"{at}{position}\.1",
                lambda m, name=name: f"{block(m)}/{name}",
                "depthwise" if name == "depthwise" else "dense",
            )
        )

    gated = "4|5|6|11|12|13|14|15"
    gates = tuple(
        rule
        for theirs, ours in (("fc1", "squeeze"), ("fc2", "excite"))
        for rule in torch_conv_bias(
            rf"{prefix}(?P<block>{gated})\.block\.2\.{theirs}",
            lambda m, ours=ours: f"{block(m)}/squeeze_excite/{ours}",
        )
    )
    return (
        *torch_conv_bn(rf"{prefix}0\.0", rf"{prefix}0\.1", "backbone/stem"),
        *layers("1", {"0": "depthwise", "1": "project"}),
        *layers("2|3|7|8|9|10", {"0": "expand", "1": "depthwise", "2": "project"}),
        *layers(gated, {"0": "expand", "1": "depthwise", "3": "project"}),
        *gates,
        *torch_conv_bn(rf"{prefix}16\.0", rf"{prefix}16\.1", "backbone/last"),
    )


# --- GoogLeNet -------------------------------------------------------------------------------

_BRANCHES = {
    "branch1": "conv1x1",
    r"branch2\.0": "conv3x3_reduce",
    r"branch2\.1": "conv3x3",
    r"branch3\.0": "conv5x5_reduce",  # with 3x3 kernels: known, and kept for the weights' sake
    r"branch3\.1": "conv5x5",
    r"branch4\.1": "pool_project",
}


def googlenet() -> tuple:
    """torchvision's GoogLeNet."""
    stem = {f"conv{i}": f"backbone/conv{i}" for i in (1, 2, 3)}
    branches = {
        rf"(?P<module>inception\d[a-e])\.{theirs}": lambda m, ours=ours: (
            f"backbone/{m['module']}/{ours}"
        )
        for theirs, ours in _BRANCHES.items()
    }
    return tuple(
        rule
        for theirs, ours in (stem | branches).items()
        for rule in torch_conv_bn(rf"{theirs}\.conv", rf"{theirs}\.bn", ours)
    )


# --- classifiers, as trunks ------------------------------------------------------------------


def _trunk(name: str, signature, rules, classifier, infer, note: str) -> Layout:
    return Layout(
        name=f"PyTorch {name} classifier, as a trunk",
        signature=signature,
        rules=(*rules, *(skip(c, "the ImageNet classifier") for c in classifier), TORCH_COUNTERS),
        infer=infer,
        normalization="imagenet",
        trunk=True,
        note=note,
    )


def _infer_mobilenet_v2(shapes: Shapes) -> dict:
    return {
        "name": "v3plus",
        "backbone": "mobilenet_v2",
        "padding": "fixed",
        "batch_norm_epsilon": 1e-5,
    }


_MOBILENET_NOTE = (
    "They need data.normalization=imagenet, model.padding=fixed, "
    "model.batch_norm_epsilon=1e-5 (the preset mobilenet_v2_torch)"
)
_1280 = r"features\.18\.[01]\.(weight|bias|running_mean|running_var)"
LAYOUTS = (
    _trunk(
        "MobileNetV2",
        (r"features\.0\.0\.weight", r"features\.1\.conv\.3\.weight"),
        mobilenet_v2(r"features\.", FLAT),
        (_1280, r"classifier\..*"),
        _infer_mobilenet_v2,
        _MOBILENET_NOTE,
    ),
    _trunk(
        "MobileNetV2 (torchvision)",
        (r"features\.0\.0\.weight", r"features\.1\.conv\.0\.0\.weight"),
        mobilenet_v2(r"features\.", NESTED),
        (_1280, r"classifier\..*"),
        _infer_mobilenet_v2,
        _MOBILENET_NOTE,
    ),
    _trunk(
        "ResNet",
        (r"conv1\.weight", r"layer4\.2\.conv3\.weight"),
        resnet(""),
        (r"fc\..*",),
        lambda shapes: {"name": "v3plus", "backbone": resnet_name(shapes)},
        "They need data.normalization=imagenet",
    ),
    Layout(
        name="torchvision GoogLeNet, as a trunk",
        signature=(r"inception3a\.branch1\.conv\.weight",),
        rules=(
            *googlenet(),
            skip(r"aux[12]\..*", "auxiliary classifiers"),
            skip(r"fc\..*", "the ImageNet classifier"),
            TORCH_COUNTERS,
        ),
        infer=lambda shapes: {"name": "fcn", "backbone": "googlenet", "output_stride": 32},
        # What its transform_input makes of torchvision's usual one.
        normalization="zero_mean",
        trunk=True,
        note="They need data.normalization=zero_mean",
    ),
)
