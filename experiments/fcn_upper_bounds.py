"""[FCN] Appendix A: the mean IU of ground truth made coarser by a factor, and upsampled again.

    python experiments/fcn_upper_bounds.py --root=VOC2012 [--split=val]
    python -m experiments.run fcn_appendix_a --set=data.root=VOC2012

It bounds what a net of that stride can reach. The paper does not say how the masks were made
coarser; here are three ways: "nearest" reads the pixel in the middle of each cell, for the whole
cell; "bilinear" interpolates between these pixels' classes; "area" does so between the shares of
every class in the cells. Void pixels count for nothing.
"""

import argparse

import numpy as np

from deeplab_jax import metrics
from deeplab_jax.data import datasets

FACTORS = (128, 64, 32, 16, 8, 4)
PAPER = (50.9, 73.3, 86.1, 92.8, 96.4, 98.5)
CLASSES, VOID = 21, 255


def nearest(mask: np.ndarray, factor: int) -> np.ndarray:
    """[H, W] → [H, W], every cell of factor x factor as its middle pixel."""
    rows, columns = (
        np.minimum(np.arange(n) // factor * factor + factor // 2, n - 1) for n in mask.shape
    )
    return mask[np.ix_(rows, columns)]


def bilinear(mask: np.ndarray, factor: int) -> np.ndarray:
    """[H, W] → [H, W], the likeliest class between the cells' middle pixels."""
    return _upsampled(mask, factor, _middles)


def area(mask: np.ndarray, factor: int) -> np.ndarray:
    """[H, W] → [H, W], the class of the largest upsampled share."""
    return _upsampled(mask, factor, _shares)


def _upsampled(mask, factor, gather):
    down, across = (gather(n, factor) for n in mask.shape)
    up_rows, up_columns = (_bilinear(n, factor) for n in mask.shape)
    best, answer = np.zeros(mask.shape), np.zeros(mask.shape, np.uint8)
    for label in np.unique(mask[mask != VOID]):
        share = down @ (mask == label).astype(np.float64) @ across.T
        share = up_rows @ share @ up_columns.T
        answer = np.where(share > best, label, answer)
        best = np.maximum(best, share)
    return answer


def _middles(n: int, factor: int) -> np.ndarray:
    """[cells, n]: what reads the cells' middle pixels."""
    middle = np.minimum(np.arange(-(-n // factor)) * factor + factor // 2, n - 1)
    return (np.arange(n) == middle[:, None]).astype(np.float64)


def _shares(n: int, factor: int) -> np.ndarray:
    """[cells, n]: means over cells."""
    cell = np.arange(n) // factor
    members = cell == np.arange(cell[-1] + 1)[:, None]
    return members / members.sum(axis=1, keepdims=True)


def _bilinear(n: int, factor: int) -> np.ndarray:
    """[n, cells]: linear between the cells' middles."""
    cells = -(-n // factor)
    position = np.clip((np.arange(n) + 0.5) / factor - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells)))


WAYS = {"nearest": nearest, "bilinear": bilinear, "area": area}


def upper_bounds(root: str, split: str) -> tuple[int, dict[str, list[float]]]:
    """(number of masks, {way: mean IU at each of `FACTORS`}) of a split of VOC."""
    source = datasets.source("voc", root, split, CLASSES, VOID)
    totals = np.zeros((len(WAYS), len(FACTORS), CLASSES, CLASSES), np.int64)
    for index in range(len(source)):
        mask = source.label(index)
        for i, coarser in enumerate(WAYS.values()):
            for j, factor in enumerate(FACTORS):
                coarse = coarser(mask, factor)
                # A void pixel in a cell's middle tells nothing: the net is not asked for void.
                coarse = np.where(coarse == VOID, 0, coarse)
                totals[i, j] += metrics.confusion(mask, coarse, CLASSES, VOID)
    return len(source), {
        way: [metrics.mean_iou(total) for total in of_way] for way, of_way in zip(WAYS, totals)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="a folder in PASCAL VOC's layout")
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    masks, bounds = upper_bounds(args.root, args.split)
    print(f"{masks} masks\n| factor | {' | '.join(WAYS)} | the paper |\n|---|---|---|---|---|")
    for j, (factor, paper) in enumerate(zip(FACTORS, PAPER)):
        found = " | ".join(f"{100 * bound[j]:.1f}" for bound in bounds.values())
        print(f"| {factor} | {found} | {paper} |")


if __name__ == "__main__":
    main()
