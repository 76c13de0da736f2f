"""[FCN] Appendix A: the mean IU of ground truth made coarser by a factor, and upsampled again.

    python experiments/fcn_upper_bounds.py --root=VOC2012 [--split=val]

It bounds what a net of that stride can reach. The paper does not say how the masks were made
coarser: `metrics.coarsened` knows three ways. Void pixels count for nothing.
"""

import argparse

import numpy as np

from deeplab_jax import metrics
from deeplab_jax.data import datasets

FACTORS = (128, 64, 32, 16, 8, 4)
PAPER = (50.9, 73.3, 86.1, 92.8, 96.4, 98.5)
CLASSES, VOID = 21, 255
WAYS = ("nearest", "bilinear", "area")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="a folder in PASCAL VOC's layout")
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    source = datasets.source("voc", args.root, args.split, CLASSES, VOID)
    totals = np.zeros((len(WAYS), len(FACTORS), CLASSES, CLASSES), np.int64)
    for index in range(len(source)):
        mask = source.label(index)
        for i, way in enumerate(WAYS):
            for j, factor in enumerate(FACTORS):
                coarse = metrics.coarsened(mask, factor, way)
                totals[i, j] += metrics.confusion(mask, coarse, CLASSES, VOID)
    print(
        f"{len(source)} masks\n| factor | {' | '.join(WAYS)} | the paper |\n|---|---|---|---|---|"
    )
    for j, (factor, paper) in enumerate(zip(FACTORS, PAPER)):
        found = " | ".join(f"{100 * metrics.mean_iou(total[j]):.1f}" for total in totals)
        print(f"| {factor} | {found} | {paper} |")


if __name__ == "__main__":
    main()
