"""[FCN] Appendix A: the mean IU of ground truth made coarser by a factor, and upsampled again.

    python -m experiments.run fcn_appendix_a --set=data.root=VOC2012

It bounds what a net of that stride can reach: no network, `measured` is the table. The paper does
not say how the masks were made coarser; `metrics.coarsened` knows three ways.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deeplab_jax import metrics
from deeplab_jax.data import datasets
from experiments.rows import rows

FACTORS = {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}  # mean IU of the paper
WAYS = ("nearest", "bilinear", "area")
CLASSES, VOID = 21, 255

ROWS = rows(
    "[FCN] Appendix A",
    *((f"factor {n}, {way}", paper, "", {}) for way in WAYS for n, paper in FACTORS.items()),
)


def measured(overrides: Mapping[str, Any]) -> dict[str, float]:
    """{label of a row: mean IU}, of data.root in VOC's layout and eval.split."""
    root, split = overrides.get("data.root", ""), overrides.get("eval.split", "val")
    source = datasets.source("voc", root, split, CLASSES, VOID)
    totals = np.zeros((len(WAYS), len(FACTORS), CLASSES, CLASSES), np.int64)
    for index in range(len(source)):
        mask = source.label(index)
        for i, way in enumerate(WAYS):
            for j, factor in enumerate(FACTORS):
                coarse = metrics.coarsened(mask, factor, way)
                totals[i, j] += metrics.confusion(mask, coarse, CLASSES, VOID)
    found = map(metrics.mean_iou, totals.reshape(-1, CLASSES, CLASSES))
    return dict(zip((row.label for row in ROWS), found))
