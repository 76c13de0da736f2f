"""Segmentation metrics: integer counts that add over the whole set and are finished once."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def confusion(
    labels: np.ndarray, preds: np.ndarray, num_classes: int, ignore_label: int = 255
) -> np.ndarray:
    """Counts of (label, prediction) pairs, [C, C] int64, rows are labels.

    Args:
      labels: integer ids of any shape, below `num_classes` or `ignore_label`.
      preds: integer ids of the same shape, below `num_classes`.

    Raises:
      ValueError: for an id outside the classes: it would be lost without a word.
    """
    labels, preds = np.asarray(labels), np.asarray(preds)
    valid = labels != ignore_label
    labels, preds = labels[valid].astype(np.int64), preds[valid].astype(np.int64)
    for what, ids in (("label", labels), ("prediction", preds)):
        if ids.size and not 0 <= ids.min() <= ids.max() < num_classes:
            raise ValueError(f"{what} ids {ids.min()}..{ids.max()}, classes 0..{num_classes - 1}")
    pairs = np.bincount(labels * num_classes + preds, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union per class, [C] float64; NaN for a class that never occurs."""
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray, classes: Sequence[int] | None = None) -> float:
    """Mean of `class_iou` over classes labelled or predicted at all; NaN if there are none.

    Args:
      classes: the ids to average over; None is all.
    """
    iou = class_iou(confusion)
    iou = iou if classes is None else iou[list(classes)]
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else float("nan")


def frequency_weighted_iou(confusion: np.ndarray) -> float:
    """`class_iou`, weighed by how often a class is labelled ([FCN] Sec. 5); NaN without labels."""
    total = confusion.sum()
    if not total:
        return float("nan")
    return float(confusion.sum(axis=1) @ np.nan_to_num(class_iou(confusion)) / total)


def mean_accuracy(confusion: np.ndarray) -> float:
    """Mean over labelled classes of the share of their pixels predicted right ([FCN] Sec. 5)."""
    labelled = confusion.sum(axis=1)
    shares = np.diag(confusion)[labelled > 0] / labelled[labelled > 0]
    return float(shares.mean()) if shares.size else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of labelled pixels predicted right; NaN without labelled pixels."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def boundary_distance(labels: np.ndarray, ignore_label: int = 255) -> np.ndarray:
    """Distance in px of each pixel of labels [H, W] to the nearest object boundary.

    The boundary is the void that annotators drew around objects, and wherever two labels meet
    without void between them ([V2] Sec. 4.1.4, [V3+] Sec. 4.4). Infinite if there is none.
    """
    void = labels == ignore_label
    boundary = void.copy()
    # Neighbours (above | below, left | right) that are both labelled, and differently.
    for one, other in (
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        meet = (labels[one] != labels[other]) & ~void[one] & ~void[other]
        boundary[one] |= meet
        boundary[other] |= meet
    if not boundary.any():
        return np.full(labels.shape, np.inf)
    return ndimage.distance_transform_edt(~boundary)


def coarsened(
    labels: np.ndarray, factor: int, way: str = "bilinear", ignore_label: int = 255
) -> np.ndarray:
    """Labels [H, W] as the best network of a stride could give them ([FCN] Appendix A).

    The paper does not say how its masks were made coarser.

    Args:
      labels: ids; void ones win nowhere, and are 0 where no class is near.
      factor: the stride, in px.
      way: "nearest" reads the pixel in the middle of each cell of factor x factor, for the whole
        cell; "bilinear" interpolates between these pixels' classes, and the likeliest is it; "area"
        does so between the shares of every class in the cells.

    Returns:
      Ids [H, W] of the same dtype.

    Raises:
      ValueError: for another way.
    """
    grids = [_cells(n, factor, way) for n in labels.shape]
    best, answer = np.zeros(labels.shape), np.zeros_like(labels)
    for label in np.unique(labels[labels != ignore_label]):
        share = (labels == label).astype(np.float64)
        for down, up in grids:  # rows, then columns: each pass puts its axis last
            share = (up @ (down @ share)).T
        answer = np.where(share > best, label, answer)
        best = np.maximum(best, share)
    return answer.astype(labels.dtype)


def _cells(n: int, factor: int, way: str) -> tuple[np.ndarray, np.ndarray]:
    """([cells, n], [n, cells]): what makes an axis coarser, and fine again."""
    cells = -(-n // factor)
    members = np.arange(n) // factor == np.arange(cells)[:, None]
    middles = np.minimum(np.arange(cells) * factor + factor // 2, n - 1)
    read = (np.arange(n) == middles[:, None]).astype(np.float64)
    place = np.clip((np.arange(n) + 0.5) / factor - 0.5, 0, cells - 1)
    blend = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))
    ways = {
        "nearest": (read, members.T.astype(np.float64)),
        "bilinear": (read, blend),
        "area": (members / members.sum(axis=1, keepdims=True), blend),
    }
    if way not in ways:
        raise ValueError(f"way={way!r} is not one of {', '.join(ways)}")
    return ways[way]


def boundary_counts(
    labels: np.ndarray,
    preds: np.ndarray,
    num_classes: int,
    ignore_label: int = 255,
    dilation_ratio: float = 0.02,
) -> np.ndarray:
    """What boundary IoU (arXiv 2103.16562) divides, of one image: [C, 2] int64, which add.

    Column 0 counts the pixels that lie within d px inside the contour of both the labelled and the
    predicted region of a class, column 1 those of either. The image's edge is a contour.

    Args:
      labels, preds: ids [H, W]; nothing is counted where labels are void.
      dilation_ratio: d as a share of the image's diagonal.
    """
    reach = max(1, round(dilation_ratio * float(np.hypot(*labels.shape))))
    valid = labels != ignore_label
    counts = np.zeros((num_classes, 2), np.int64)
    for c in np.union1d(labels[valid], preds[valid]):
        truth, given = (_inner_boundary((ids == c) & valid, reach) for ids in (labels, preds))
        counts[c] = (truth & given).sum(), (truth | given).sum()
    return counts


def _inner_boundary(mask: np.ndarray, reach: int) -> np.ndarray:
    """Pixels of `mask` that `reach` erosions by 3x3 squares take away."""
    depth = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
    return mask & (depth <= reach)
