"""MobileNetV2 classifiers trained in PyTorch, as a trunk: the backbone without its classifier.

Trained with ImageNet mean/std of RGB, symmetric padding (`padding="fixed"`) and a batch-norm
epsilon of 1e-5 (`batch_norm_epsilon=1e-5`): the model's configuration should say so.
"""

from deeplab_jax.importers.table import Layout, same


def _dense(array):
    return array.transpose(2, 3, 1, 0)  # OIHW → HWIO


def _depthwise(array):
    return array[:, 0].transpose(1, 2, 0)  # [C, 1, kh, kw] → [kh, kw, C]


def _block(index: int) -> str:
    return f"backbone/block{index}"


# foreign convolution, its batch norm, our module
_MODULES = [("features.0.0", "features.0.1", "backbone/stem")]
_MODULES += [
    ("features.1.conv.0", "features.1.conv.1", f"{_block(0)}/depthwise"),
    ("features.1.conv.3", "features.1.conv.4", f"{_block(0)}/project"),
]
for _i in range(2, 18):
    _MODULES += [
        (f"features.{_i}.conv.0", f"features.{_i}.conv.1", f"{_block(_i - 1)}/expand"),
        (f"features.{_i}.conv.3", f"features.{_i}.conv.4", f"{_block(_i - 1)}/depthwise"),
        (f"features.{_i}.conv.6", f"features.{_i}.conv.7", f"{_block(_i - 1)}/project"),
    ]


def _rules(conv: str, norm: str, ours: str):
    kernel, change = ("kernel", _dense)
    if ours.endswith("depthwise"):
        kernel, change = ("depthwise_kernel", _depthwise)
    conv, norm = conv.replace(".", r"\."), norm.replace(".", r"\.")
    return (
        (rf"{conv}\.weight", f"params/{ours}/{kernel}", change),
        (rf"{norm}\.weight", f"params/{ours}/norm/scale", same),
        (rf"{norm}\.bias", f"params/{ours}/norm/bias", same),
        (rf"{norm}\.running_mean", f"batch_stats/{ours}/norm/mean", same),
        (rf"{norm}\.running_var", f"batch_stats/{ours}/norm/var", same),
    )


TRUNK = Layout(
    name="PyTorch MobileNetV2 classifier, as a trunk",
    signature=frozenset({"features.0.0.weight", "features.1.conv.3.weight"}),
    rules=(
        *[rule for module in _MODULES for rule in _rules(*module)],
        (
            r"features\.18\.[01]\.(weight|bias|running_mean|running_var)",
            None,
            same,
        ),  # the 1280-channel convolution: DeepLab has none
        (r"classifier\..*", None, same),
        (r".*\.num_batches_tracked", None, same),
    ),
    trunk=True,
    note="They need data.normalization=imagenet, model.padding=fixed, "
    "model.batch_norm_epsilon=1e-5 (the preset mobilenet_v2_torch)",
)
