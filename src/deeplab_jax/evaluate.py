"""Evaluation over a whole split: one confusion matrix, a table, trimaps, pictures."""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from deeplab_jax import __version__, metrics, pictures, processes, report, runtime
from deeplab_jax.config import eval_model
from deeplab_jax.data import pipeline
from deeplab_jax.data.files import shown_size
from deeplab_jax.data.labels import Labels
from deeplab_jax.data.transforms import normalization
from deeplab_jax.predict import label_maps, predict, probability_maps, refine
from deeplab_jax.report import Example, percent
from deeplab_jax.tally import Shown, Tally


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes:
      figures: JSON-able. With `eval.crf` those after it, and "before_crf", those before. Of a head
        NAME "mean_iou_NAME" and "pixel_accuracy_NAME".
      tally: counts behind them.
      examples: {heading: images}, each with its truth and prediction, with the CRF before and
        after it.
      beliefs: with the CRF, pictures of an image and of one class's probability in it, before and
        after some iterations.
    """

    figures: dict[str, Any]
    tally: Tally
    examples: dict[str, list[Example]]
    beliefs: list[list[np.ndarray]]


def evaluate(
    module: nn.Module,
    variables: Any,
    source,
    config: Mapping[str, Any],
    labels: Labels,
    *,
    mesh,
    trimap_widths: Sequence[int] = (),
    upper_bounds: Sequence[int] = (),
    panels: int = 0,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Predicts every image of `source`, as `eval` says, and scores it.

    Of several processes each does so with a share of the images, on its own devices; the counts
    are then those of all, the examples the first one's.

    Args:
      module, variables: the network at the output stride to evaluate at; the variables on any
        devices.
      source: random access; {"image", "label"}.
      config: the whole configuration; `eval`, `data` and `model` are read.
      labels: names and colours.
      mesh: the devices, of all processes.
      trimap_widths: in px; () measures none.
      upper_bounds: strides, in px, of which to tell what mean IoU a perfect network would have
        ([FCN] Appendix A; `metrics.coarsened`).
      panels: how many images to show beside truth and prediction, spread over the split.
      between: called after every batch; what it raises ends the evaluation.
    """
    data, num_classes = config["data"], config["model"]["num_classes"]
    ignore_label = data["ignore_label"]
    mesh, variables, share = processes.apart(mesh, variables, source)
    module = runtime.spatially(module, mesh)
    # Rounded up to the devices: a batch is filled up with repeated images anyway.
    batch_size = runtime.rounded_up(config["eval"]["batch_size"], mesh)
    singly, sizes = _singly(config["eval"]), {}
    if singly:
        sizes = {k: config["eval"][k] for k in ("tile_size", "tile_overlap", "resize", "crop_size")}
    crf = config["crf"] if config["eval"]["crf"] else None
    heads = dict(config["model"]["heads"] or {})
    of_heads = {name: Tally(classes, ignore_label) for name, classes in heads.items()}
    each_image = config["eval"]["image_counts"]
    tallies = [Tally(num_classes, ignore_label, trimap_widths, upper_bounds, each_image)]
    if crf:
        tallies.append(Tally(num_classes, ignore_label, trimap_widths))  # before it
    shown, beliefs, seen = Shown(len(share), panels), [], 0
    with runtime.Progress(len(share), "eval") as progress:
        for images, examples in _batches(share, config, batch_size):
            see = partial(
                _predicted if singly else probability_maps if crf else label_maps,
                module,
                variables,
                images if singly else runtime.shard_batch(images, mesh),
                normalization=data["normalization"],
                align_corners=config["model"]["align_corners"],
                eval_scales=config["eval"]["eval_scales"],
                add_flipped_images=config["eval"]["add_flipped_images"],
                **sizes,
            )
            answer = see()
            for name, tally in of_heads.items():  # a pass a head
                for given, example in zip(np.asarray(see(head=name)), examples):
                    truth = example[f"label_{name}"]
                    given = given[: truth.shape[0], : truth.shape[1]]
                    tally.add(truth, given.argmax(-1) if crf else given)
            for image, given, example in zip(images, np.asarray(answer), examples):
                truth = example["label"]
                preds = [given[: truth.shape[0], : truth.shape[1]]]
                if crf:
                    preds = [refine(image, given, truth.shape, crf), preds[0].argmax(-1)]
                place = example["index"]
                iou, *_ = [tally.add(truth, pred, place) for tally, pred in zip(tallies, preds)]
                draw = partial(_drawn, example, iou, preds, labels, ignore_label)
                shown.add(seen, iou, draw)
                if crf and seen in shown.places:
                    beliefs.append(_beliefs(image, given, truth.shape, crf, labels))
                seen += 1
            progress.advance(len(examples))
            between()
    for tally in (*tallies, *of_heads.values()):
        tally.gather()
    left_out = processes.left_out(seen, source)
    subset = config["eval"]["class_subset"]
    results, *before = (tally.results(labels.names, subset) for tally in tallies)
    if crf:
        results["before_crf"] = before[0]
    if left_out:  # files that cannot be read, with data.on_error=skip
        results["left_out"] = left_out
    for name, tally in of_heads.items():
        results[f"mean_iou_{name}"] = metrics.mean_iou(tally.total)
        results[f"pixel_accuracy_{name}"] = metrics.pixel_accuracy(tally.total)
    return Evaluation(results, tallies[0], shown.groups(), beliefs)


def _batches(share: pipeline.Share, config, batch_size: int):
    """(images [B, H, W, C], examples): padded ones, or one by one and as they are."""
    if _singly(config["eval"]):
        for i in range(len(share)):
            example = share[i]
            if "replaced" not in example:
                yield example["image"][None], [example]
        return
    channels = share.source[0]["image"].shape[-1]  # this process may have no image
    pad_value = normalization(config["data"]["normalization"], channels)[0]
    yield from pipeline.eval_batches(share, config["eval"]["crop_size"], pad_value, batch_size)


def _singly(evaluation) -> bool:
    """Whether images are seen one by one: in tiles, or at another size."""
    return bool(evaluation["tile_size"] or evaluation["resize"])


def _predicted(module, variables, images, **options) -> np.ndarray:
    return predict(module, variables, images[0], **options)[None]


def _drawn(example, iou: float, preds, labels: Labels, ignore_label: int) -> Example:
    image, truth = example["image"][..., :3], example["label"]
    void = (truth == ignore_label)[..., None]
    truth = np.where(void, pictures.PAPER, labels.palette[truth.astype(np.uint8)]).astype(np.uint8)
    found = [labels.palette[pred] for pred in preds]
    titles = ("prediction",) if len(found) == 1 else ("after the CRF", "before the CRF")
    layers = {"image": image, "truth": truth} | dict(reversed([*zip(titles, found)]))
    layers = {title: pictures.fit(layer, 320) for title, layer in layers.items()}
    return Example(str(example.get("name", "")), iou, layers)


def _beliefs(image, probs, size, crf, labels: Labels) -> list[np.ndarray]:
    """The probability of the likeliest class but 0, as the mean field goes on ([V2] Fig. 5)."""
    height, width = size
    mass = probs[:height, :width].sum(axis=(0, 1))
    chosen = 1 + int(mass[1:].argmax()) if len(mass) > 1 else 0
    maps = refine(image, probs, size, crf, "beliefs")[..., chosen]
    maps = [probs[:height, :width, chosen], *(maps[i - 1] for i in belief_iterations(crf))]
    shades = [np.repeat((255 * m + 0.5).astype(np.uint8)[..., None], 3, axis=2) for m in maps]
    first = pictures.fit(image[:height, :width, :3].astype(np.uint8), 320)
    return [pictures.named(first, labels.names[chosen]), *(pictures.fit(m, 320) for m in shades)]


def belief_iterations(crf: Mapping[str, Any]) -> list[int]:
    """Which of the mean field's iterations the picture shows: those of the papers' figure."""
    return sorted({min(i, crf["iterations"]) for i in (1, 2, crf["iterations"])})


def settings(config: Mapping[str, Any], weights: str, images: int) -> dict[str, Any]:
    """How an evaluation was made, for its files.

    Args:
      config: the whole configuration.
      weights: which they were.
      images: how many were evaluated.
    """
    model, given = eval_model(config), config["eval"]
    padded = "each image's own size"
    if given["crop_size"] is not None:
        padded = shown_size(given["crop_size"])
    if given["tile_size"]:
        padded = f"{shown_size(given['tile_size'])}, overlap {given['tile_overlap']}"
    resized = given["resize"]
    if isinstance(resized, tuple):
        resized = shown_size(resized)
    return {
        "weights": weights,
        "model": f"{model['name']} {model['backbone']}",
        "output stride": model["output_stride"],
        "atrous rates": str(model["atrous_rates"]),
        "dataset": f"{config['data']['name']} {given['split']}, {images} images",
        "scales": ", ".join(map(str, given["eval_scales"])),
        "mirrored": given["add_flipped_images"],
        "resized to": resized,
        "padded to": padded,
        "CRF": given["crf"] and ", ".join(f"{k} {v}" for k, v in config["crf"].items()),
        "deeplab_jax": __version__,
    }


def headline(results: Mapping[str, Any]) -> str:
    """The one figure that a line has room for."""
    return f"mean iou {percent(results['mean_iou'])}"


def merit(results: Mapping[str, Any]) -> str:
    """The key of the figure by which one checkpoint is better than another: of the subset of
    classes, if there is one."""
    return next((key for key in results if re.fullmatch(r"mean_iou_\d+", key)), "mean_iou")


def table(results: Mapping[str, Any]) -> str:
    """The per-class table and the totals, for people. An absent class shows as "–"."""
    width = max(len(name) for name in results["iou"])
    lines = [f"{'class':<{width}}   IoU %   predicted %"]
    for name, iou in results["iou"].items():
        shown, share = percent(iou).removesuffix(" %"), results["predicted_share"][name]
        lines.append(f"{name:<{width}}  {shown:>6}  {100 * share:>11.2f}")
    before = results.get("before_crf", {})

    def line(what, value, given):
        was = "" if given is None else f", before the CRF {percent(given)}"
        lines.append(f"{what}: {percent(value)}{was}")

    for key, value in results.items():
        if key.startswith(("mean_", "pixel_accuracy", "frequency")):
            line(key.replace("_", " "), value, before.get(key))
    trimaps = before.get("trimap_mean_iou", {})
    for width, value in results.get("trimap_mean_iou", {}).items():
        line(f"mean iou within {width} px of a boundary", value, trimaps.get(width))
    for stride, value in results.get("upper_bounds", {}).items():
        lines.append(f"mean iou of the truth itself at stride {stride}: {percent(value)}")
    taken = [name for name, share in results["predicted_share"].items() if share > 0]
    if len(taken) == 1:
        lines.append(
            f"warning: every pixel is predicted {taken[0]!r}. Trained too short, a wrong "
            "learning rate, wrong mask ids (see --mode=check_data) or batch norm never updated"
        )
    return "\n".join(lines)


def write(
    folder: Path, found: Evaluation, labels: Labels, settings: Mapping[str, Any], crf=None
) -> None:
    """Writes results.json, report.html, confusion.csv, confusion.png, legend.png, panel.png, with
    the CRF also belief_maps.png, with the counts of each image also counts.npz: "whole" and, within
    W px of a boundary, "trimap_W", [images, C, C] int32, rows are labels.

    Args:
      settings: {what: value} of how it was measured, for the files.
      crf: that section of the configuration, if the CRF was used.
    """
    results, tally = found.figures, found.tally
    folder.mkdir(parents=True, exist_ok=True)
    runtime.write_whole(
        folder / "results.json",
        json.dumps(runtime.finite(results | {"settings": settings}), indent=1) + "\n",
    )
    page = report.page(results, tally.total, labels, found.examples, settings)
    runtime.write_whole(folder / "report.html", page)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    # A spreadsheet would compute what begins so.
    names = [f"'{name}" if name.startswith(("=", "+", "-", "@")) else name for name in labels.names]
    writer.writerow(["truth \\ prediction", *names])
    writer.writerows([name, *row.tolist()] for name, row in zip(names, tally.total))
    runtime.write_whole(folder / "confusion.csv", table.getvalue())
    if tally.images is not None:
        keys = ("whole", *(f"trimap_{width}" for width in tally.bands))
        in_order = [counts for _, counts in sorted(tally.images.items())]
        counts = np.stack(in_order, axis=1)  # [1 + widths, images, C, C]
        packed = io.BytesIO()
        np.savez_compressed(packed, **dict(zip(keys, counts)))
        runtime.write_whole(folder / "counts.npz", packed.getvalue())
    picture = pictures.confusion_matrix(tally.total, labels.names)
    runtime.write_whole(folder / "confusion.png", pictures.png(picture))
    runtime.write_whole(folder / "legend.png", pictures.png(pictures.legend(labels)))
    rows = found.examples.get("spread over the split")
    if rows:
        layers = [list(example.layers.values()) for example in rows]
        picture = pictures.panel(layers, list(rows[0].layers))
        runtime.write_whole(folder / "panel.png", pictures.png(picture))
    if found.beliefs:
        titles = [f"iteration {i}" for i in belief_iterations(crf)]
        picture = pictures.panel(found.beliefs, ("class", "before the CRF", *titles))
        runtime.write_whole(folder / "belief_maps.png", pictures.png(picture))
