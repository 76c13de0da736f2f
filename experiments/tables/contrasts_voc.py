"""The decoder and the CRF on real images, in minutes: a part of PASCAL VOC, from an ImageNet trunk.

    python -m experiments.run contrasts_voc --set=data.root=VOC_SUBSET --set=init_from=TRUNK

VOC_SUBSET is a folder in PASCAL VOC's layout whose images hold some of the classes, TRUNK the
weights of MobileNetV2 as PyTorch trains it. All of the head is the paper's.
"""

from functools import partial

from deeplab_jax import metrics
from experiments.bootstrap import BANDS, NARROW_MORE, WHOLE, Contrast
from experiments.rows import CRF, NO_DECODER, rows

CLASSES = (0, 8, 10, 12, 13, 15, 17)  # background, cat, cow, dog, horse, person, sheep
RECIPE = {
    "model.depthwise_norm": True,
    "model.low_level": "inner",
    "model.decoder_convs": 2,
    "model.dropout": 0.1,
    "model.atrous_rates": (3, 6, 9),
    "data.crop_size": (257, 257),
    "train.batch_size": 8,
    "train.steps": 1000,
    "optim.learning_rate": 0.01,
    "eval.class_subset": CLASSES,
}
V3 = RECIPE | NO_DECODER
# The best of --mode=tune_crf on 40 of the val images, behind a v3 like this one.
WIDTHS = {"crf.w1": 6.0, "crf.sigma_alpha": 70.0, "crf.sigma_beta": 4.0}
PRESET = "v3plus.py:mobilenet_v2_torch"

ROWS = rows(
    "Contrasts, real images",
    ("v3+", "", PRESET, RECIPE),
    ("v3", "", PRESET, V3),
    ("v3, CRF", "", PRESET, V3 | CRF | WIDTHS),
)

OF_THESE = partial(metrics.mean_iou, classes=CLASSES)
MEAN_IOU = WHOLE._replace(figure=OF_THESE)
NEAR = [band._replace(figure=OF_THESE) for band in BANDS]
NEAR_MORE = NARROW_MORE._replace(figure=OF_THESE, minus=MEAN_IOU)
CONTRASTS = [
    Contrast("the decoder beats bilinear upsampling", "v3+", "v3", (MEAN_IOU, *NEAR)),
    Contrast("and gains most near boundaries", "v3+", "v3", (NEAR_MORE,)),
    Contrast("the CRF near boundaries", "v3, CRF", "v3", (*NEAR, MEAN_IOU)),
]
