"""A grid of settings as rows, and what each costs: mean IoU against multiply-adds and time."""

import ast
import itertools
import json
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import config as configuration
from deeplab_jax import counting, networks
from deeplab_jax import train as training
from deeplab_jax.data import pipeline
from deeplab_jax.errors import ConfigError
from deeplab_jax.output import say, write_whole
from deeplab_jax.pictures import png
from deeplab_jax.predict import label_maps
from experiments import plots
from experiments.plan import Job, digest
from experiments.results import plus_minus
from experiments.rows import Row
from experiments.work import hardware

TIMED = 10  # passes


def value(text: str) -> Any:
    """A Python literal, or the text itself: "8", "(6, 12)", "auto"."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def axis(text: str) -> tuple[str, list[Any]]:
    """("model.output_stride", [8, 16]) of "model.output_stride=8,16"; brackets hold commas.

    Raises:
      ConfigError: for anything else, and for a value that is given twice.
    """
    key, equals, rest = text.partition("=")
    words = re.findall(r"((?:\([^()]*\)|[^,()])+)(?:,|$)", rest)
    if not (key and equals and words) or sum(map(len, words)) + len(words) - 1 != len(rest):
        raise ConfigError(f"--sweep {text}: takes KEY=VALUE,VALUE, tuples in brackets")
    values = [value(word.strip()) for word in words]
    if any(v in values[:i] for i, v in enumerate(values)):
        raise ConfigError(f"--sweep {text}: a value is given twice")
    return key, values


def rows(spec: str, axes: Sequence[tuple[str, list[Any]]]) -> list[Row]:
    """A row a point of the grid, of "FILE.py:preset"; the last axis changes fastest.

    Raises:
      ConfigError: if there is no such file or preset.
    """
    configuration.load(spec)
    spec = str(Path(spec).absolute())
    found = []
    keys = [key for key, _ in axes]
    for point in itertools.product(*(values for _, values in axes)):
        label = ", ".join(f"{key.split('.')[-1]} {v}" for key, v in zip(keys, point))
        found.append(Row("sweep", label, "", spec, dict(zip(keys, point)), dataset=""))
    return found


def costs(job: Job, out: Path) -> dict[str, Any]:
    """{"multiply_adds", "seconds"} of an image as the row is evaluated, without the CRF.

    Kept in out/costs: what evaluates the same graph in the same way is measured once.
    """
    config = job.resolved
    size = config.eval.crop_size or config.data.crop_size
    scales, mirrored = tuple(config.eval.eval_scales), config.eval.add_flipped_images
    about = {
        "model": configuration.eval_model(config),
        "size": size,
        "scales": scales,
        "mirrored": mirrored,
        "hardware": hardware(),
    }
    path = out / "costs" / f"{digest(about)}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        return {key: kept[key] for key in ("multiply_adds", "seconds")}
    _, module = networks.build(config)
    channels = pipeline.channels(config.data)
    multiply_adds = counting.count_scales(
        module, size, scales, mirrored, "exact", config.model.align_corners, channels
    )
    variables = training.init_variables(module, 0, channels)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, *size, channels)), jnp.uint8)

    def seconds() -> float:
        began = time.perf_counter()
        jax.block_until_ready(
            label_maps(
                module,
                variables,
                image,
                normalization=config.data.normalization,
                align_corners=config.model.align_corners,
                eval_scales=scales,
                add_flipped_images=mirrored,
            )
        )
        return time.perf_counter() - began

    seconds()  # compiles
    found = {
        "multiply_adds": multiply_adds,
        "seconds": statistics.median(seconds() for _ in range(TIMED)),
    }
    say(f"{job.row.label}: {multiply_adds / 1e9:.2f} G multiply-adds, {found['seconds']:.3f} s")
    write_whole(path, json.dumps(found | about, indent=1, default=str) + "\n")
    return found


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Adds the costs to a summary's files: path.json, path.md, path.png.

    Args:
      found: of `results.summary`, its rows with "multiply_adds" and "seconds".
    """
    rows = [row for row in found["rows"] if row["ours"] is not None]
    lines = [
        "| settings | mean IoU, % | G multiply-adds | s an image | |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [row["label"], plus_minus(row["ours"], row["spread"]), "", "", row["left_out"]]
        if row["ours"] is not None:
            cells[2:4] = f"{row['multiply_adds'] / 1e9:.2f}", f"{row['seconds']:.3f}"
        lines.append(f"| {' | '.join(cells)} |")
    write_whole(path.with_name(path.name + ".json"), json.dumps(found, indent=1) + "\n")
    write_whole(path.with_name(path.name + ".md"), "\n".join(lines) + "\n")
    if rows:
        pictures = [
            plots.curves(
                {row["label"]: [(row[key] / unit, 100 * row["ours"])] for row in rows},
                name,
                "mean IoU, %",
                logarithmic=True,
                joined=False,
            )
            for key, unit, name in (
                ("multiply_adds", 1e9, "G multiply-adds"),
                ("seconds", 1, "s an image"),
            )
        ]
        write_whole(path.with_name(path.name + ".png"), png(plots.beside(pictures)))
