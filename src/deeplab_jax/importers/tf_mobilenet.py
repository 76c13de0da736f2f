"""Google's DeepLabv3 on MobileNetV2 from frozen graphs: TF names, batch norm folded into kernels.

A folded kernel already holds gamma / std, so its batch norm becomes the identity plus an offset:
scale 1, mean 0, and a variance of 1 - epsilon with the official epsilons (1e-3 in the backbone,
1e-5 in the head). Such weights are for inference or for training with batch norm frozen: batch
statistics would undo the folding.
"""

from deeplab_jax.importers.table import Layout, same


def _depthwise(array):
    return array[..., 0]  # [kh, kw, C, 1] → [kh, kw, C]


# our module : its name in the graph
_MODULES = {
    r"MobilenetV2/Conv": r"backbone/stem",
    r"MobilenetV2/expanded_conv/(depthwise|project)": r"backbone/block0/\1",
    r"MobilenetV2/expanded_conv_(\d+)/(expand|depthwise|project)": r"backbone/block\1/\2",
    r"image_pooling": r"aspp/image_pooling",
    r"aspp0": r"aspp/conv1x1",
    r"concat_projection": r"aspp/projection",
}

FOLDED = Layout(
    name="TensorFlow DeepLabv3 MobileNetV2, batch norm folded",
    signature=frozenset({"MobilenetV2/Conv/Conv2D/merged_input", "logits/semantic/weights"}),
    rules=(
        *[
            rule
            for foreign, ours in _MODULES.items()
            for rule in (
                (f"{foreign}/Conv2D/merged_input", f"params/{ours}/kernel", same),
                (f"{foreign}/depthwise_weights", f"params/{ours}/depthwise_kernel", _depthwise),
                (f"{foreign}/BatchNorm/FusedBatchNorm/Scaled", f"params/{ours}/norm/scale", same),
                (f"{foreign}/BatchNorm/FusedBatchNorm/Offset", f"params/{ours}/norm/bias", same),
            )
        ],
        (r"logits/semantic/weights", r"params/logits/kernel", same),
        (r"logits/semantic/biases", r"params/logits/bias", same),
        (r"Reshape", None, same),  # a constant of the graph's preprocessing
    ),
    note="They hold no batch statistics: fine-tune with train.fine_tune_batch_norm=False",
    constants={
        r"params/.*/norm/scale": 1.0,
        r"batch_stats/.*/norm/mean": 0.0,
        r"batch_stats/backbone/.*/norm/var": 1.0 - 1e-3,
        r"batch_stats/(?!backbone/).*/norm/var": 1.0 - 1e-5,
    },
)
