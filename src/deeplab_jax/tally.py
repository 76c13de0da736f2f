"""What an evaluation keeps of a long stream of images: counts of all, pictures of a few."""

import functools
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_jax import metrics, processes
from deeplab_jax.report import Example


class Tally:
    """Counts of a whole split: a confusion matrix, one a trimap width, and one an upper bound.

    With `each_image`, `images` holds those of every image, too, by its place in the split:
    [1 + widths, C, C] int32, the whole image first. Whoever wants to know how sure a difference is
    draws images from them.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_label: int,
        trimap_widths: Sequence[int] = (),
        upper_bounds: Sequence[int] = (),
        each_image: bool = False,
    ):
        self.num_classes, self.ignore_label = num_classes, ignore_label
        many = 1 + len(trimap_widths) + len(upper_bounds)
        self.counts = np.zeros((many, num_classes, num_classes), np.int64)
        self.total, *others = self.counts  # parts of it, not copies
        self.bands = dict(zip(trimap_widths, others))
        self.bounds = dict(zip(upper_bounds, others[len(self.bands) :]))
        self.images: dict[int, np.ndarray] | None = {} if each_image else None

    def add(self, labels: np.ndarray, preds: np.ndarray, place: int | None = None) -> float:
        """Counts labels and preds [H, W]; returns their own mean IoU.

        `place` is the image's in the split, the next one if None.
        """
        counts = metrics.confusion(labels, preds, self.num_classes, self.ignore_label)
        self.total += counts
        found = [counts]
        if self.bands:
            distance = metrics.boundary_distance(labels, self.ignore_label)
            for width, band in self.bands.items():
                near = distance <= width
                found.append(
                    metrics.confusion(
                        labels[near], preds[near], self.num_classes, self.ignore_label
                    )
                )
                band += found[-1]
        if self.images is not None:
            place = len(self.images) if place is None else place
            self.images[place] = np.stack(found).astype(np.int32)
        for factor, bound in self.bounds.items():
            coarse = metrics.coarsened(labels, factor, ignore_label=self.ignore_label)
            bound += metrics.confusion(labels, coarse, self.num_classes, self.ignore_label)
        return metrics.mean_iou(counts)

    def gather(self) -> None:
        """Makes the counts those of all processes' images; call it in every process."""
        self.counts[:] = sum(processes.gathered(self.counts))
        if self.images is None:
            return
        shape = (len(self.images), 1 + len(self.bands), self.num_classes, self.num_classes)
        counts = np.array([*self.images.values()], np.int32).reshape(shape)
        places = processes.gathered(np.array([*self.images], np.int64))
        counts = processes.gathered(counts)
        self.images = dict(zip(np.concatenate(places).tolist(), np.concatenate(counts)))

    def results(self, names: Sequence[str], class_subset: Sequence[int] = ()) -> dict[str, Any]:
        """The split's figures; shares in 0..1, NaN where there is nothing to measure."""
        results = {
            "mean_iou": metrics.mean_iou(self.total),
            "pixel_accuracy": metrics.pixel_accuracy(self.total),
            "mean_accuracy": metrics.mean_accuracy(self.total),
            "frequency_weighted_iou": metrics.frequency_weighted_iou(self.total),
        }
        if names[0] == "background":
            rest = range(1, self.num_classes)
            results["mean_iou_without_background"] = metrics.mean_iou(self.total, rest)
        if class_subset:
            subset = metrics.mean_iou(self.total, class_subset)
            results[f"mean_iou_{len(class_subset)}"] = subset
        results["iou"] = dict(zip(names, metrics.class_iou(self.total).tolist()))
        predicted = self.total.sum(axis=0) / max(self.total.sum(), 1)
        results["predicted_share"] = dict(zip(names, predicted.tolist()))
        if self.bands:
            results["trimap_mean_iou"] = _mean_ious(self.bands)
            if class_subset:
                of_subset = _mean_ious(self.bands, class_subset)
                results[f"trimap_mean_iou_{len(class_subset)}"] = of_subset
        if self.bounds:
            results["upper_bounds"] = _mean_ious(self.bounds)
        return results


def _mean_ious(counts: Mapping[int, np.ndarray], classes: Sequence[int] | None = None):
    """JSON-able, by what the counts are by."""
    return {str(key): metrics.mean_iou(count, classes) for key, count in counts.items()}


class Shown:
    """Keeps a few images of a long stream: some spread over it, the best and the worst."""

    EXTREMES = 4

    def __init__(self, total: int, count: int):
        self.places = set(np.linspace(0, total - 1, count).astype(int).tolist()) if count else set()
        self.spread: list[Example] = []
        self.extremes = {"best": [], "worst": []}  # heaps of (score, -place, Example)
        self.kept = min(self.EXTREMES, count)

    def add(self, place: int, iou: float, make: Callable[[], Example]) -> None:
        """`make` is called, once, for an image that is kept."""
        make = functools.cache(make)
        if place in self.places:
            self.spread.append(make())
        if np.isnan(iou):
            return
        for heap, score in zip(self.extremes.values(), (iou, -iou)):
            if len(heap) < self.kept:
                heapq.heappush(heap, (score, -place, make()))
            elif heap and score > heap[0][0]:
                heapq.heapreplace(heap, (score, -place, make()))

    def groups(self) -> dict[str, list[Example]]:
        """{"best", "worst", "spread over the split": examples, the most extreme first}."""
        extremes = {
            name: [example for *_, example in sorted(heap, key=lambda kept: kept[:2])[::-1]]
            for name, heap in self.extremes.items()
        }
        return extremes | {"spread over the split": self.spread}
