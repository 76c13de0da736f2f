"""What the papers claim, on the embedded scenes: pairs of rows that differ in one thing.

Five trainings serve all: v3+ and v3 on MobileNetV2, and v3 on a backbone of five convolutions with
three rates, with a large one and with a small one.
"""

from functools import partial

import numpy as np

from deeplab_jax import metrics
from deeplab_jax.data.synthetic import SOLIDS, TWIN_A, TWIN_B
from experiments.bootstrap import BANDS, NARROW_MORE, WHOLE, Contrast, Measure
from experiments.rows import AT_8, CRF, FLIPS, rows

TWINS = (TWIN_A, TWIN_B)
DECODER, ASPP = "v3+, rates 2, 4, 6", "v3, rates 2, 4, 6"
V3, V3PLUS = "v3.py:mobilenet_v2", "v3plus.py:mobilenet_v2"
# A backbone whose own field of view is 63 px, and nothing that pools the image: the head's decides.
NEAR_SIGHTED = {
    "model.backbone": "experiments.own_backbone:ConvNet",
    "model.image_pooling": False,
    "optim.learning_rate": 0.2,
}
SEVERAL, LARGE, SMALL = "ConvNet, rates 2, 4, 6", "ConvNet, rate 4", "ConvNet, rate 1"

ROWS = rows(
    "Contrasts, embedded scenes",
    (DECODER, "", V3PLUS, {}),
    (ASPP, "", V3, {}),
    (f"{ASPP}, eval OS 8", "", V3, AT_8),
    (f"{ASPP}, MS, flip", "", V3, FLIPS),
    (f"{ASPP}, CRF", "", V3, CRF),
    (SEVERAL, "", V3, NEAR_SIGHTED),
    # At stride 16 a rate of 4 reaches 64 px: to the twins' beacons, across the largest solids.
    (LARGE, "", V3, NEAR_SIGHTED | {"model.atrous_rates": (4,)}),
    (SMALL, "", V3, NEAR_SIGHTED | {"model.atrous_rates": (1,)}),
    dataset="synthetic",
)


def told_apart(counts: np.ndarray) -> float:
    """Of the twins' pixels that are taken for a twin, the share taken for the right one."""
    twins = counts[np.ix_(TWINS, TWINS)]
    return float(np.trace(twins) / twins.sum()) if twins.sum() else float("nan")


FAR_CUE = Measure("mean IoU of the twins", partial(metrics.mean_iou, classes=TWINS))
TOLD_APART = Measure("twins told apart", told_apart)
SOLID = Measure("mean IoU of the solids", partial(metrics.mean_iou, classes=SOLIDS))
CONTRASTS = [
    Contrast("the decoder beats bilinear upsampling", DECODER, ASPP, (WHOLE, *BANDS)),
    Contrast("and gains most near boundaries", DECODER, ASPP, (NARROW_MORE,)),
    Contrast("a large field of view beats a small one", LARGE, SMALL, (SOLID, WHOLE)),
    Contrast("and sees the far cue", LARGE, SMALL, (FAR_CUE, TOLD_APART)),
    Contrast("ASPP beats LargeFOV on what varies in size", SEVERAL, LARGE, (SOLID, WHOLE)),
    Contrast("evaluating at OS 8", f"{ASPP}, eval OS 8", ASPP, (WHOLE, *BANDS)),
    Contrast("several scales and mirroring", f"{ASPP}, MS, flip", ASPP, (WHOLE, *BANDS)),
    Contrast("the CRF near boundaries", f"{ASPP}, CRF", ASPP, (*BANDS, WHOLE)),
]
