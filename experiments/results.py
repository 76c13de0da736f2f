"""What the rows came to: results/TABLE.json, TABLE.md and TABLE.png."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.output import write_whole
from deeplab_jax.pictures import png
from deeplab_jax.report import percent
from deeplab_jax.runtime import duration, finite
from experiments import plots
from experiments.bootstrap import Contrast, compare, spread
from experiments.plan import Job
from experiments.rows import Row
from experiments.work import commit, done, hardware


def figure(results: Mapping[str, Any], class_subset: Sequence[int] = ()) -> float:
    """The one that tables hold: mean IoU, over `class_subset` where one is given; of a classifier
    the top-1 error."""
    if class_subset:
        return results[f"mean_iou_{len(class_subset)}"]
    return results.get("mean_iou", results.get("top_1_error"))


def summary(
    rows: Sequence[Row],
    jobs: Sequence[Job],
    left_out: Mapping[str, str],
    contrasts: Sequence[Contrast],
    seeds: Sequence[int],
    out: Path,
) -> dict[str, Any]:
    """{"rows": [...], "contrasts": [...]} of all that is there; plain JSON.

    A row has "table", "label", "published", "ours" (mean over seeds, share in 0..1, None before it
    has run), "spread" (sample standard deviation), "seeds" {seed: figure}, "trimap_mean_iou"
    {width: mean}, "training_seconds" (mean, without compiling), "steps", "commits", "hardware",
    "evaluations" {seed: folder} and "left_out" (why it cannot run). A contrast has what `compare`
    gives beside "claim", "better", "worse", "measure" and "seeds".
    """
    of = {job.row.label: job for job in jobs}
    return finite(
        {
            "rows": [_row(row, of.get(row.label), left_out, seeds, out) for row in rows],
            "contrasts": [
                found for contrast in contrasts for found in _contrast(contrast, of, seeds, out)
            ],
        }
    )


def _number_or_nan(value: float | None) -> float:
    """JSON has no NaN: what cannot be measured is None there."""
    return math.nan if value is None else value


def _row(row: Row, job: Job | None, left_out, seeds, out) -> dict[str, Any]:
    given = {
        "table": row.table,
        "label": row.label,
        "published": row.published,
        "left_out": left_out.get(row.label, ""),
    }
    there = [seed for seed in seeds if job and done(job, out, seed)]
    results = [_read(job.folder(out, seed) / "results.json") for seed in there]
    runs = [_read(job.folder(out, seed) / "run.json") for seed in there]
    subset = job.config["eval.class_subset"] if there else ()
    figures = [_number_or_nan(figure(found, subset)) for found in results]
    key = f"trimap_mean_iou_{len(subset)}" if subset else "trimap_mean_iou"
    trimaps = [found.get(key, {}) for found in results]
    return given | {
        "ours": float(np.mean(figures)) if figures else None,
        "spread": spread(figures),
        "seeds": dict(zip(there, figures)),
        "trimap_mean_iou": {
            width: float(np.mean([_number_or_nan(trimap[width]) for trimap in trimaps]))
            for width in (trimaps[0] if trimaps else ())
        },
        "steps": job and job.config["train.steps"],
        "training_seconds": float(np.mean([_training_seconds(job, out, seed) for seed in there]))
        if there
        else None,
        "commits": sorted({run["commit"] for run in runs}),
        "hardware": sorted({run["hardware"] for run in runs}),
        "evaluations": {seed: str(job.folder(out, seed)) for seed in there},
    }


def measured(rows: Sequence[Row], values: Mapping[str, float]) -> dict[str, Any]:
    """A `summary` of figures {label: share} that no training stands behind."""
    none = {"left_out": "", "spread": None, "trimap_mean_iou": {}, "training_seconds": None}
    return {
        "rows": [
            {
                "table": row.table,
                "label": row.label,
                "published": row.published,
                "ours": values[row.label],
                "seeds": {"": values[row.label]},
                "commits": [commit()],
                "hardware": [hardware()],
            }
            | none
            for row in rows
        ],
        "contrasts": [],
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _training_seconds(job: Job, out: Path, seed: int) -> float:
    """Of the steps, over all sessions, without compiling, from the rates in metrics.jsonl."""
    seconds, before = 0.0, 0
    for text in (job.workdir(out, seed) / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if "images_per_second" in line:
            images = (line["step"] - before) * job.config["train.batch_size"]
            seconds += images / line["images_per_second"]
            before = line["step"]
    return seconds


def _contrast(contrast: Contrast, of: Mapping[str, Job], seeds, out) -> list[dict[str, Any]]:
    if not (contrast.better in of and contrast.worse in of):
        return []
    pair = of[contrast.better], of[contrast.worse]
    both = [seed for seed in seeds if all(done(job, out, seed) for job in pair)]
    if not both:
        return []
    better, worse = ([_counts(job, out, seed) for seed in both] for job in pair)
    return [
        {
            "claim": contrast.claim,
            "better": contrast.better,
            "worse": contrast.worse,
            "measure": measure.label,
            "seeds": both,
            **{
                f"of_{key}" if key in ("better", "worse") else key: value
                for key, value in compare(measure, better, worse).items()
            },
        }
        for measure in contrast.measures
    ]


def _counts(job: Job, out: Path, seed: int) -> dict[str, np.ndarray]:
    with np.load(job.folder(out, seed) / "counts.npz") as file:
        return dict(file)


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, for people."""
    lines = ["| row | paper | ours | seeds | training | |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        seconds = row["training_seconds"]
        cells = (
            row["label"],
            row["published"],
            plus_minus(row["ours"], row["spread"]),
            ", ".join(row["seeds"]),
            "" if seconds is None else duration(seconds),
            row["left_out"] and f"left out: {row['left_out']}",
        )
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    if found["contrasts"]:
        lines += [
            "",
            "Differences in points: mean ± spread over seeds, how many seeds say so, and 95 % of a "
            "paired bootstrap over images.",
            "",
            "| claim | measure | better | worse | difference | seeds | 95 % |",
            "|---|---|---|---|---|---|---|",
        ]
    before = ""
    for row in found["contrasts"]:
        low, high = (points(bound) for bound in row["interval"])
        claim = f"{row['claim']}: {row['better']} – {row['worse']}"
        cells = (
            claim if claim != before else "",
            row["measure"],
            percent(row["of_better"]),
            percent(row["of_worse"]),
            points(row["mean"])
            + ("" if row["spread"] is None else f" ± {points(row['spread'])[1:]}"),
            f"{row['positive']} of {len(row['seeds'])}",
            f"{low} to {high}",
        )
        lines.append(f"| {' | '.join(cells)} |")
        before = claim
    commits = {commit for row in found["rows"] for commit in row["commits"]}
    hardware = {name for row in found["rows"] for name in row["hardware"]}
    lines += ["", f"Commits {', '.join(sorted(commits))}; on {'; '.join(sorted(hardware))}."]
    return "\n".join(lines) + "\n"


def points(share: float | None) -> str:
    """A difference in points, with its sign."""
    return "–" if share is None else f"{100 * share:+.2f}"


def plus_minus(mean: float | None, spread: float | None) -> str:
    """A figure in %, with its spread where there are several."""
    if mean is None:
        return ""
    return f"{100 * mean:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Writes path.json, path.md and, once there is a figure, path.png."""
    write_whole(path.with_name(path.name + ".json"), json.dumps(found, indent=1) + "\n")
    write_whole(path.with_name(path.name + ".md"), markdown(found))
    rows = [row for row in found["rows"] if row["ours"] is not None]
    if not rows:
        return
    bars = plots.bars(
        [row["label"] for row in rows],
        [[100 * value for value in row["seeds"].values()] for row in rows],
        [_number(row["published"]) for row in rows],
    )
    curves = {
        row["label"]: [
            (float(w), 100 * v) for w, v in row["trimap_mean_iou"].items() if v is not None
        ]
        for row in rows
    }
    pictures = [bars]
    if any(curves.values()):
        pictures.append(plots.curves(curves, "px from a boundary, at most", "mean IoU, %"))
    write_whole(path.with_name(path.name + ".png"), png(plots.beside(pictures)))


def _number(published: str) -> float | None:
    """The paper's mean IoU; None where the table says something else."""
    try:
        return float(published) if not published.startswith("+") else None
    except ValueError:
        return None
