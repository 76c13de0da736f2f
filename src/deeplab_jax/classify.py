"""Evaluation of image classifiers: top-1 and top-5 error over a whole split, and a picture."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import pictures, processes, runtime
from deeplab_jax.data import pipeline
from deeplab_jax.data.labels import Labels
from deeplab_jax.predict import normalize

TOP = 5
SHOWN = 200  # px of an image in the picture


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes:
      figures: JSON-able: "top_1_error", "top_1_accuracy", "top_5_error" and, by class, "error".
      tiles: pictures of images, with the truth and what was answered.
    """

    figures: dict[str, Any]
    tiles: list[np.ndarray]


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
    """Classifies the middle of every image of `source`; arguments as `evaluate.evaluate`'s.

    With `eval.add_flipped_images` the probabilities of an image and its mirror image are averaged.
    Labels have no boundaries here: `trimap_widths` and `upper_bounds` measure nothing.
    """
    mesh, variables, share = processes.apart(mesh, variables, source)
    batch_size = runtime.rounded_up(config["eval"]["batch_size"], mesh)
    classes = config["model"]["num_classes"]
    shown = set(np.linspace(0, len(share) - 1, panels).astype(int).tolist()) if panels else set()
    asked, wrong = np.zeros(classes, np.int64), np.zeros((2, classes), np.int64)
    tiles, seen = [], 0
    batches = pipeline.central_batches(
        share, config["eval"]["crop_size"], config["eval"]["central_fraction"], batch_size
    )
    with runtime.Progress(len(share), "eval") as progress:
        for images, examples in batches:
            best, probs = _likeliest(
                module,
                variables,
                runtime.shard_batch(images, mesh),
                normalization=config["data"]["normalization"],
                mirrored=config["eval"]["add_flipped_images"],
            )
            for image, ids, prob, example in zip(
                images, np.asarray(best), np.asarray(probs), examples
            ):
                truth = int(example["label"][0, 0])
                asked[truth] += 1
                wrong[0, truth] += truth != ids[0]
                wrong[1, truth] += truth not in ids
                if seen in shown:
                    caption = f"{labels.names[ids[0]]} {100 * prob[0]:.0f} %"
                    if truth != ids[0]:
                        caption += f"\nis {labels.names[truth]}"
                    tiles.append(_tile(image, caption))
                seen += 1
            progress.advance(len(examples))
            between()
    asked, wrong = (sum(processes.gathered(counts)) for counts in (asked, wrong))
    left_out = processes.left_out(seen, source)
    with np.errstate(invalid="ignore"):  # a class that no image has
        by_class = wrong[0] / asked
    top_1, top_5 = (wrong.sum(axis=1) / max(asked.sum(), 1)).tolist()
    figures = {"top_1_error": top_1, "top_1_accuracy": 1 - top_1, "top_5_error": top_5}
    if left_out:  # files that cannot be read, with data.on_error=skip
        figures["left_out"] = left_out
    figures["error"] = dict(zip(labels.names, by_class.tolist()))
    return Evaluation(figures, tiles)


def _tile(image: np.ndarray, caption: str) -> np.ndarray:
    """About 200 px, so that the caption fits, whatever the image's size."""
    times = max(1, SHOWN // max(image.shape[:2]))
    tile = image[..., :3].astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1)
    return pictures.named(pictures.fit(tile, SHOWN), caption)


@partial(jax.jit, static_argnames=("module", "normalization", "mirrored"))
def _likeliest(module, variables, images, *, normalization: str, mirrored: bool):
    """[B, H, W, C] in 0..255 → ids [B, 5] of the likeliest classes, and their probabilities."""
    views = [images, images[:, :, ::-1]] if mirrored else [images]
    probs = sum(
        jax.nn.softmax(module.apply(variables, normalize(view, normalization))[:, 0, 0])
        for view in views
    )
    probs, ids = jax.lax.top_k(probs / len(views), min(TOP, probs.shape[-1]))
    return ids.astype(jnp.int32), probs


def headline(results: Mapping[str, Any]) -> str:
    """The one figure that a line has room for."""
    return f"top-1 error {100 * results['top_1_error']:.2f} %"


def merit(results: Mapping[str, Any]) -> str:
    """The key of the figure by which one checkpoint is better than another."""
    return "top_1_accuracy"


def table(results: Mapping[str, Any]) -> str:
    """The totals and the classes most often missed, for people."""
    lines = [f"top-{k} error: {100 * results[f'top_{k}_error']:.2f} %" for k in (1, TOP)]
    missed = {n: e for n, e in results["error"].items() if not np.isnan(e)}
    worst = sorted(missed, key=missed.get, reverse=True)[:10]
    width = max(len(name) for name in worst)
    lines += [f"{'class':<{width}}  error %"]
    lines += [f"{name:<{width}}  {100 * missed[name]:>7.2f}" for name in worst]
    if len(missed) > len(worst):
        lines.append(f"and {len(missed) - len(worst)} classes more, of no higher error")
    return "\n".join(lines)


def write(
    folder: Path, found: Evaluation, labels: Labels, settings: Mapping[str, Any], crf=None
) -> None:
    """Writes results.json and panel.png; arguments as `evaluate.write`'s."""
    results = runtime.finite(found.figures | {"settings": settings})
    runtime.write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n")
    if found.tiles:
        picture = pictures.contact_sheet(found.tiles, "prediction")
        runtime.write_whole(folder / "panel.png", pictures.png(picture))
