"""Google's DeepLabv3 on MobileNetV2 from frozen graphs: TF names, batch norm folded into kernels.

A folded kernel already holds gamma / std, so its batch norm becomes the identity plus an offset:
scale 1, mean 0, and a variance of 1 - epsilon with the official epsilons (1e-3 in the backbone,
1e-5 in the head). Such weights are for inference or for training with batch norm frozen: batch
statistics would undo the folding.
"""

from deeplab_jax.importers.table import Layout, Rule, Shapes, same, skip
from deeplab_jax.importers.tf_slim import depthwise, width_of

# our module : its name in the graph
_MODULES = {
    r"MobilenetV2/Conv": r"backbone/stem",
    r"MobilenetV2/expanded_conv/(depthwise|project)": r"backbone/block0/\1",
    r"MobilenetV2/expanded_conv_(\d+)/(expand|depthwise|project)": r"backbone/block\1/\2",
    r"image_pooling": r"aspp/image_pooling",
    r"aspp0": r"aspp/conv1x1",
    r"concat_projection": r"aspp/projection",
}
_LEAVES = {
    "Conv2D/merged_input": ("kernel", same),
    "depthwise_weights": ("depthwise_kernel", depthwise),
    "BatchNorm/FusedBatchNorm/Scaled": ("norm/scale", same),
    "BatchNorm/FusedBatchNorm/Offset": ("norm/bias", same),
}


def _infer(shapes: Shapes) -> dict:
    """The published frozen graphs: no decoder, no atrous branches."""
    return {
        "name": "v3",
        "backbone": "mobilenet_v2",
        "num_classes": shapes["logits/semantic/weights"][-1],
        "output_stride": 8,
        "atrous_rates": None,
        "separable": False,
        "align_corners": True,
        "width_multiplier": width_of(shapes, "Conv2D/merged_input"),
        "aspp_channels": shapes["concat_projection/Conv2D/merged_input"][-1],
    }


LAYOUTS = (
    Layout(
        name="TensorFlow DeepLabv3 MobileNetV2, batch norm folded",
        signature=(r"MobilenetV2/Conv/Conv2D/merged_input", r"logits/semantic/weights"),
        rules=(
            *[
                Rule(f"{scope}/{leaf}", f"params/{ours}/{name}", change)
                for scope, ours in _MODULES.items()
                for leaf, (name, change) in _LEAVES.items()
            ],
            Rule(r"logits/semantic/weights", r"params/logits/kernel"),
            Rule(r"logits/semantic/biases", r"params/logits/bias"),
            skip(r"Reshape", "a constant of the graph's preprocessing"),
        ),
        infer=_infer,
        normalization="zero_mean",
        note="They hold no batch statistics: fine-tune with train.fine_tune_batch_norm=False",
        constants={
            r"params/.*/norm/scale": 1.0,
            r"batch_stats/.*/norm/mean": 0.0,
            r"batch_stats/backbone/.*/norm/var": 1.0 - 1e-3,
            r"batch_stats/(?!backbone/).*/norm/var": 1.0 - 1e-5,
        },
    ),
)
