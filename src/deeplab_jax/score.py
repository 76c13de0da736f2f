"""Scores label images on disk, whoever made them: `--mode=score`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax import evaluate, metrics, runtime
from deeplab_jax.data import files, image_files, pipeline
from deeplab_jax.data.labels import IGNORE_LABEL, Labels, labels
from deeplab_jax.errors import ConfigError, DataError, first_few
from deeplab_jax.evaluate import Evaluation
from deeplab_jax.tally import Tally


def score_files(
    config, predictions: str | None, truth: str | None, folder: Path | None
) -> dict[str, Any]:
    """Scores, says and writes; returns the figures.

    Args:
      config: says what the masks' ids mean; None: classes are what ids there are.
      predictions, truth: a folder or file each.
      folder: for the report; None writes nothing.

    Raises:
      ConfigError: without one of the two.
      DataError: as `pairs`, `unnamed` and `score`.
    """
    if not (predictions and truth):
        raise ConfigError("--mode=score needs --input=PREDICTIONS and --truth=MASKS, folders")
    found = pairs(Path(predictions).expanduser(), Path(truth).expanduser())
    if config is None:
        known, raw, widths, subset = unnamed(found), False, (), ()
    else:
        known = pipeline.class_labels(config.data, config.model.num_classes)
        raw = config.predict.raw_ids
        widths, subset = config.eval.trimap_widths, config.eval.class_subset
    result = score(found, known, raw_predictions=raw, trimap_widths=widths, class_subset=subset)
    runtime.say(evaluate.table(result.figures))
    if folder:
        settings = {"predictions": predictions, "truth": truth, "images": len(found)}
        evaluate.write(folder, result, known, settings)
        runtime.say(f"report.html, pictures and tables in {folder}")
    return result.figures


def pairs(predictions: Path, truth: Path) -> list[tuple[Path, Path]]:
    """(prediction, truth) files of the same stem, in folders or of two files, for every truth.

    Raises:
      DataError: listing truths without a prediction; other predictions do not matter.
    """
    masks, preds = _by_stem(truth), _by_stem(predictions)
    if truth.is_file() and predictions.is_file():
        return [(predictions, truth)]
    missing = [masks[stem] for stem in masks if stem not in preds]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(masks)} masks in {truth} have no prediction of the same name "
            f"in {predictions}:\n{first_few(missing)}"
        )
    return [(preds[stem], masks[stem]) for stem in masks]


def _by_stem(path: Path) -> dict[str, Path]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    found = [p for p in found if p.suffix.lower() in image_files.MASK_SUFFIXES]
    if not found:
        raise DataError(f"{path}: no label images ({', '.join(image_files.MASK_SUFFIXES)})")
    by_stem: dict[str, Path] = {}
    for file in found:
        if file.stem in by_stem:
            raise DataError(
                f"{file} and {by_stem[file.stem]} have the same name; name the folder that holds "
                "the label images alone"
            )
        by_stem[file.stem] = file
    return by_stem


def unnamed(found: Sequence[tuple[Path, Path]]) -> Labels:
    """Labels for files of which nothing is known: as many classes as their largest id says.

    Raises:
      DataError: if masks are void all over, or for an id past 255.
    """

    def ids(paths) -> set[int]:
        return {int(i) for path in paths for i in np.unique(image_files.read_mask(path))}

    predictions, masks = zip(*found)
    truth = ids(masks) - {IGNORE_LABEL}
    if not truth:
        raise DataError(f"{len(found)} masks hold nothing but void ({IGNORE_LABEL})")
    largest = max(truth | ids(predictions) - {IGNORE_LABEL})
    if largest > IGNORE_LABEL:
        raise DataError(
            f"ids up to {largest}: labels are bytes. Give --config with data.root beside a "
            "classes.json that says what these ids mean"
        )
    return labels((), largest + 1)


def score(
    found: Sequence[tuple[Path, Path]],
    known: Labels,
    *,
    raw_predictions: bool = False,
    trimap_widths: Sequence[int] = (),
    class_subset: Sequence[int] = (),
) -> Evaluation:
    """The figures of `evaluate` and boundary IoU, of predictions on disk.

    Args:
      found: of `pairs`.
      known: names, colours, and what the ids in the masks mean.
      raw_predictions: predictions hold the masks' ids, too, not labels.
      trimap_widths, class_subset: as of `evaluate`.

    Raises:
      DataError: for a file that is no mask, of another size, or with ids that are no class.
    """
    classes, ignore_label = len(known.names), known.ignore_label
    predictions, masks = zip(*found)
    raw = (known.label_map, known.colors or None, known.others_void)
    truths = files.Pairs((), masks, classes, ignore_label, *raw)
    answers = files.Pairs((), predictions, classes, ignore_label, *(raw if raw_predictions else ()))
    tally = Tally(classes, ignore_label, trimap_widths)
    boundary = np.zeros((classes, 2), np.int64)
    with runtime.Progress(len(found), "score") as progress:
        for i, (prediction, mask) in enumerate(found):
            truth, pred = truths.label(i), answers.label(i)
            if truth.shape != pred.shape:
                raise DataError(
                    f"{prediction}: {files.shown_size(pred.shape)}, but {mask} is "
                    f"{files.shown_size(truth.shape)}; predictions must have the size of their "
                    "masks"
                )
            unknown = int(((pred == ignore_label) & (truth != ignore_label)).sum())
            if unknown:
                raise DataError(
                    f"{prediction}: {unknown} pixels are void ({ignore_label}) where {mask} is "
                    "labelled; a prediction names a class everywhere. Predictions in the masks' "
                    "own ids take --config.predict.raw_ids=True"
                )
            tally.add(truth, pred)
            boundary += metrics.boundary_counts(truth, pred, classes, ignore_label)
            progress.advance()
    figures: dict[str, Any] = tally.results(known.names, class_subset)
    inside, either = boundary.T
    iou = np.divide(inside, either, out=np.full(classes, np.nan), where=either > 0)
    figures["boundary_iou"] = dict(zip(known.names, iou.tolist()))
    figures["mean_boundary_iou"] = float(np.nanmean(iou)) if either.any() else float("nan")
    return Evaluation(figures, tally, {}, [])
