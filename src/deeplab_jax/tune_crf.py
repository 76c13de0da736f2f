"""Cross-validation of the CRF's w1, sigma_alpha and sigma_beta, coarse to fine ([V2] Sec. 4.1)."""

import bisect
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import metrics, runtime
from deeplab_jax.config import eval_model
from deeplab_jax.crf import inference
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.predict import crf_options, probabilities

Point = tuple[float, float, float]  # w1, sigma_alpha, sigma_beta
AXES = ("w1", "sigma_alpha", "sigma_beta")


class Table:
    """What was measured, a line each in a file, so that a search goes on where it stopped.

    Args:
      path: of the file.
      setting: what the figures depend on beside the point; a file of another setting is refused.
      by: the figure that decides which line is best.

    Raises:
      ConfigError: then.
    """

    def __init__(self, path: Path, setting: Mapping[str, Any], by: str = "mean_iou"):
        self.path, self.by, self.found = path, by, {}
        setting = json.loads(json.dumps(runtime.finite(setting)))
        if path.exists():
            lines = list(filter(None, map(_parsed, path.read_text().splitlines())))
            if lines and lines[0] != {"setting": setting}:
                raise ConfigError(
                    f"{path} was made with other weights, images or CRF settings: remove it or use "
                    "another --workdir"
                )
            lines = lines or [{"setting": setting}]  # killed before the first was whole
            for line in lines[1:]:
                self.found[tuple(line[axis] for axis in AXES)] = line
            # Without the torn last line of a killed run.
            runtime.write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
        else:
            self._append({"setting": setting})

    def add(self, point: Point, figures: Mapping[str, float]) -> None:
        line = dict(zip(AXES, point)) | runtime.finite(figures)
        self.found[point] = line
        self._append(line)

    def best(self) -> dict[str, float]:
        """The best line; of equals the first in order.

        Raises:
          DataError: if none has a figure.
        """
        lines = [self.found[point] for point in sorted(self.found)]
        lines = [line for line in lines if line[self.by] is not None]
        if not lines:
            raise DataError(f"no {self.by}: no pixel of the images has a label that counts")
        return max(lines, key=lambda line: line[self.by])

    def _append(self, line) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def search(
    grid: Sequence[Sequence[float]], measure: Callable[[list[Point]], None], table: Table
) -> dict[str, float]:
    """Every second value of each axis first, then the neighbours of the best until none is better.

    Args:
      grid: the values of w1, sigma_alpha and sigma_beta.
      measure: adds points of one sigma_alpha and sigma_beta to the table.
      table: what is in it is not measured again.

    Returns:
      The best line of the table.
    """
    wanted = set(itertools.product(*(axis[::2] for axis in grid)))
    while wanted:
        missing = sorted(wanted - table.found.keys(), key=_sigmas)
        for _, group in itertools.groupby(missing, _sigmas):
            measure(list(group))
        best = table.best()
        near = [_around(axis, best[name]) for axis, name in zip(grid, AXES)]
        wanted = set(itertools.product(*near)) - table.found.keys()
    return best


def _sigmas(point: Point):
    return point[1:], point[0]


def _around(axis: Sequence[float], value: float) -> Sequence[float]:
    i = bisect.bisect_left(axis, value)  # a table may hold a best one of another grid
    return axis[max(i - 1, 0) : i + 2]


def tune(
    module: nn.Module,
    variables: Any,
    source,
    config: Mapping[str, Any],
    folder: Path,
    setting: Mapping[str, Any],
) -> dict[str, float]:
    """Searches on some images of `source`, spread over it; the network sees each once.

    Args:
      module, variables: the network as it predicts.
      source: random access; {"image", "label"}.
      config: the whole configuration; `tune_crf`, `crf`, `eval`, `data` and `model` are read.
      folder: gets table.jsonl; what is in it already is not measured again.
      setting: names the weights.

    Returns:
      The best line of the table: w1, sigma_alpha, sigma_beta and what they reach.

    Raises:
      ConfigError: if the table was made with something else.
    """
    count = min(config["tune_crf"]["images"], len(source))
    grid = [tuple(map(float, config["tune_crf"][axis])) for axis in AXES]
    data, evaluation = config["data"], dict(config["eval"])
    for key in ("tile_size", "resize"):
        if evaluation[key]:
            raise ConfigError(f"--mode=tune_crf needs images whole, as they are: eval.{key}=None")
    subset = evaluation["class_subset"]
    fixed = {k: v for k, v in crf_options(config["crf"]) if k not in AXES}
    seen = ("split", "crop_size", "eval_scales", "add_flipped_images", "class_subset")
    setting = dict(setting) | {"images": count, "crf": fixed, "model": eval_model(config)}
    setting |= {"eval": {key: evaluation[key] for key in seen}}
    setting |= {"data": {key: data[key] for key in ("name", "root", "ignore_label")}}
    folder.mkdir(parents=True, exist_ok=True)
    by = _mean_iou_of(subset) if subset else "mean_iou"
    table = Table(folder / "table.jsonl", setting, by)
    options = {key: evaluation[key] for key in ("crop_size", "eval_scales", "add_flipped_images")}
    options |= {"normalization": data["normalization"]}
    options |= {"align_corners": config["model"]["align_corners"]}
    examples = []
    with runtime.Progress(count, "probabilities") as progress:
        for i in np.linspace(0, len(source) - 1, count).astype(int).tolist():
            example = source[i]
            progress.advance()
            if "replaced" in example:  # an unreadable image; its stand-in is there already
                continue
            image, truth = example["image"], example["label"]
            probs = probabilities(module, variables, image, **options)
            examples.append((image[..., :3], probs.astype(np.float16), truth))
    labels = config["model"]["num_classes"], data["ignore_label"]
    counts = sum(metrics.confusion(truth, p.argmax(-1), *labels) for _, p, truth in examples)
    runtime.say(f"without the CRF  {_percent(_figures(counts, subset))}")
    measure = measurer(examples, table, fixed, *labels, subset)
    return search(grid, measure, table)


def shown(line: Mapping[str, float]) -> str:
    """A line of the table, for people."""
    point = "  ".join(f"{axis} {line[axis]:g}" for axis in AXES)
    return f"{point}  {_percent({k: v for k, v in line.items() if k not in AXES})}"


def _percent(figures: Mapping[str, float]) -> str:
    shares = {name.replace("_", " "): share for name, share in runtime.finite(figures).items()}
    return "  ".join(f"{k} {'–' if v is None else f'{100 * v:.2f} %'}" for k, v in shares.items())


def measurer(
    examples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    table: Table,
    fixed: Mapping[str, Any],
    num_classes: int,
    ignore_label: int,
    class_subset: Sequence[int],
) -> Callable[[list[Point]], None]:
    """What `search` calls: the CRF on every example, all values of w1 in one program.

    Args:
      examples: (image [H, W, 3], probabilities [H, W, C], labels [H, W]).
      table: gets the figures: mean IoU, also that of `class_subset`, and pixel accuracy.
      fixed: the CRF's other keywords, among them its method.
      num_classes, ignore_label: of the labels.
    """
    fixed = tuple(fixed.items())

    def measure(points: list[Point]) -> None:
        weights = jnp.asarray([point[0] for point in points], jnp.float32)
        counts = np.zeros((len(points), num_classes, num_classes), np.int64)
        _, alpha, beta = points[0]
        with runtime.Progress(len(examples), f"sigma_alpha {alpha:g}, sigma_beta {beta:g}") as bar:
            for image, probs, truth in examples:
                padded = _padded(image, probs)
                found = _labels(*padded, weights, alpha, beta, inference.is_wide(beta), fixed)
                labels = np.asarray(found)
                for count, pred in zip(counts, labels):
                    pred = pred[: truth.shape[0], : truth.shape[1]]
                    count += metrics.confusion(truth, pred, num_classes, ignore_label)
                bar.advance()
        for point, count in zip(points, counts):
            table.add(point, _figures(count, class_subset))
            runtime.say(shown(table.found[point]))

    return measure


def _figures(counts: np.ndarray, class_subset: Sequence[int]) -> dict[str, float]:
    figures = {"mean_iou": metrics.mean_iou(counts)}
    if class_subset:
        figures[_mean_iou_of(class_subset)] = metrics.mean_iou(counts, class_subset)
    return figures | {"pixel_accuracy": metrics.pixel_accuracy(counts)}


def _mean_iou_of(class_subset: Sequence[int]) -> str:
    return f"mean_iou_{len(class_subset)}"


def _padded(image, probs):
    """(image, probabilities, mask) on a grid of 64 px: few shapes, few compilations."""
    height, width = image.shape[:2]
    pads = [(0, -height % 64), (0, -width % 64)]
    mask = np.pad(np.ones((height, width), bool), pads)
    return np.pad(image, [*pads, (0, 0)]), np.pad(probs, [*pads, (0, 0)]), mask


@functools.partial(jax.jit, static_argnames=("wide", "fixed"))
def _labels(image, probs, mask, weights, sigma_alpha, sigma_beta, wide, fixed):
    """[w1, H, W]: one set of kernels serves all weights."""
    fixed = dict(fixed)
    of_image = inference.Kernels(mask, fixed["method"])
    alike = of_image.appearance(image, sigma_alpha, sigma_beta, wide)
    near = of_image.smoothness(fixed["sigma_gamma"]), fixed["w2"]

    def one(w1):
        return of_image.mean_field(probs, ((alike, w1), near), fixed["iterations"]).argmax(-1)

    return jax.lax.map(one, weights)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
