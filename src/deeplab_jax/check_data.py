"""Looks at a whole dataset before any training: ids, sizes, files that cannot be used."""

from pathlib import Path

import numpy as np

from deeplab_jax import pictures, runtime
from deeplab_jax.data.labels import Labels
from deeplab_jax.errors import DataError, first_few


def check(source, split: str, labels: Labels, ignore_label: int, folder: Path) -> str:
    """Reads every example of a split; writes a contact sheet; returns the report.

    Args:
      source: random access; its errors are gathered, not raised.
      split: for the title.
      labels: names and colours.
      ignore_label: the id of void.
      folder: where SPLIT.png (up to 12 overlays) goes.

    Raises:
      DataError: listing the bad examples, after the report of the good ones was printed.
    """
    classes = len(labels.names)
    pixels = np.zeros(max(classes, ignore_label) + 1, np.int64)
    images_with = np.zeros_like(pixels)
    sizes, bad, tiles = {}, [], []
    shown = set(np.linspace(0, len(source) - 1, min(12, len(source))).astype(int).tolist())
    with runtime.Progress(len(source), f"check {split}") as progress:
        for i in range(len(source)):
            try:
                example = source[i]
            except DataError as error:
                bad.append(str(error))
                continue
            finally:
                progress.advance()
            label = example["label"]
            counts = np.bincount(label.ravel(), minlength=len(pixels))
            pixels += counts
            images_with += counts > 0
            sizes[label.shape] = sizes.get(label.shape, 0) + 1
            if i in shown:
                shown_ids = np.where(label == ignore_label, 255, label)
                drawn = pictures.overlay(example["image"][..., :3], shown_ids, labels.palette)
                tiles.append(pictures.fit(drawn, 240))

    report = _report(split, len(source), len(bad), pixels, images_with, sizes, labels, ignore_label)
    if tiles:
        sheet = pictures.contact_sheet(tiles, split)
        runtime.write_whole(folder / f"{split}.png", pictures.png(sheet))
    if bad:
        runtime.say(report)
        raise DataError(
            f"{len(bad)} of {len(source)} examples of {split!r} cannot be used:\n" + first_few(bad)
        )
    return report


def _report(split, total, bad, pixels, images_with, sizes, labels, ignore_label) -> str:
    width = max(len("class"), *(len(name) for name in labels.names))
    labelled = max(pixels[: len(labels.names)].sum(), 1)
    lines = [
        f"{split}: {total} examples, {bad} of them bad",
        f"{'id':>4}  {'class':<{width}}  {'pixels %':>8}  images",
    ]
    for i, name in enumerate(labels.names):
        share = 100 * pixels[i] / labelled
        lines.append(f"{i:>4}  {name:<{width}}  {share:>8.3f}  {images_with[i]}")
    void = 100 * pixels[ignore_label] / max(pixels.sum(), 1)
    lines.append(f"{ignore_label:>4}  {'void':<{width}}  {void:>8.3f}  {images_with[ignore_label]}")
    if sizes:
        common = sorted(sizes.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{w}x{h} ({count})" for (h, w), count in common[:5])
        lines.append(f"sizes (width x height): {shown}" + (", ..." if len(common) > 5 else ""))
    absent = [n for i, n in enumerate(labels.names) if not images_with[i]]
    if absent:
        lines.append(f"never labelled: {', '.join(absent)}")
    return "\n".join(lines)
