"""Rare and hard classes: pixel counts, class weights from them, images that appear again."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.data import files

CLASS_WEIGHTS = ("median_frequency", "inverse_log")


def pixel_counts(source, num_classes: int, ignore_label: int, num_threads: int = 4) -> np.ndarray:
    """How many pixels of each class every example has: [N, num_classes] int64.

    A source may have a method `label(index)` that reads the label map [H, W] alone; others make
    the whole example.

    Raises:
      DataError: from the source.
    """
    read = getattr(source, "label", None) or (lambda index: source[index]["label"])

    def count(index):
        label = read(index)
        ids = label[label != ignore_label]
        return np.bincount(ids, minlength=num_classes)[:num_classes]

    with ThreadPoolExecutor(max(num_threads, 1)) as pool:
        return np.array(list(pool.map(count, range(len(source)))), np.int64)


def class_weights(name: str, counts: np.ndarray) -> tuple[float, ...]:
    """Factors of the loss that make up for the classes' unequal numbers of pixels.

    "median_frequency" (arXiv 1411.4734 Sec. 6.3.2, as SegNet takes it up): a class's frequency
    is its share of the labelled pixels of the images it is in; the weight is the classes' median
    frequency over it. A class that is nowhere, whose weight matters to no pixel, gets 1.
    "inverse_log" (ENet, arXiv 1606.02147 Sec. 5.2): 1 / ln(1.02 + the class's share of all).

    Args:
      name: one of `CLASS_WEIGHTS`.
      counts: from `pixel_counts`.

    Raises:
      ValueError: for an unknown name.
    """
    of_class = counts.sum(axis=0)
    if name == "median_frequency":
        around = np.where(counts > 0, counts.sum(axis=1, keepdims=True), 0).sum(axis=0)
        there = of_class > 0
        frequency = of_class[there] / around[there]
        weights = np.ones(len(of_class))
        weights[there] = np.median(frequency) / frequency if there.any() else 1
    elif name == "inverse_log":
        weights = 1 / np.log(1.02 + of_class / max(of_class.sum(), 1))
    else:
        raise ValueError(f"{name!r} is not one of {', '.join(CLASS_WEIGHTS)}")
    return tuple(weights.tolist())


@dataclasses.dataclass(frozen=True)
class Picked:
    """The examples of a random-access source at `indices`, in that order; some may come again."""

    source: Any
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.source[int(self.indices[index])]

    @property
    def images(self) -> Sequence[Path]:
        """The source's files, if it has them."""
        return getattr(self.source, "images", ())

    def fingerprint(self) -> str:
        """Of the source, and which of its examples."""
        return f"{files.fingerprint(self.source)} {list(map(int, self.indices))}"


def bootstrapped(counts: np.ndarray, classes: Sequence[int], copies: int) -> np.ndarray:
    """Indices of an epoch where every example with one of `classes` comes `copies` times.

    [V3] Sec. 4.1's bootstrapping: its hard classes on VOC are bicycle, chair, table, potted plant
    and sofa, (2, 9, 11, 16, 18).
    """
    hard = (counts[:, list(classes)] > 0).any(axis=1)
    return np.repeat(np.arange(len(counts)), np.where(hard, copies, 1))


def balanced(source, data: Mapping[str, Any], loss: Mapping[str, Any], num_classes: int):
    """(training source, class weights): what `config.data` and `config.loss` make of `source`.

    Masks are counted where that is needed, the weights over the epoch with its repeated images.
    """
    weights, classes = loss["class_weights"], data["bootstrap_classes"]
    if not (classes or isinstance(weights, str)):
        return source, weights
    counts = pixel_counts(source, num_classes, data["ignore_label"], data["num_threads"])
    if classes:
        indices = bootstrapped(counts, classes, data["bootstrap_copies"])
        source, counts = Picked(source, indices), counts[indices]
    if isinstance(weights, str):
        weights = class_weights(weights, counts)
    return source, weights
