"""What a table needs: its rows as evaluations of arms. An arm is one training, whatever its seed.

Rows of one arm differ only in what evaluates it. An arm's folder is named after all that its
training depends on and that is not a default, so tables, contrasts and sweeps share it, and keys
that a later version adds leave it its name.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import classes, networks
from deeplab_jax import config as configuration
from deeplab_jax.errors import ConfigError, did_you_mean
from deeplab_jax.runtime import finite
from experiments.rows import COCO, CONFIGS, Row
from experiments.scale import scaled

EVALUATION = ("eval.", "crf.")
# What changes neither a training nor a figure.
NEITHER = (
    "seed",  # a folder of its own
    "init_from",  # an arm that it starts from counts by its name
    "log_every",
    "predict.",
    "export.",
    "tune_crf.",
    "data.root",
    "data.records",
    "data.cache",
    "data.num_threads",
    "data.num_workers",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "eval.panels",
    "eval.batch_size",
    "eval.image_counts",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A row at a scale: how to train its arm, and how to evaluate that.

    Attributes:
      row: of the table.
      spec: "FILE.py:preset".
      overrides: of it, those of evaluation among them.
      start: the job whose arm this one's weights come from.
    """

    row: Row
    spec: str
    overrides: Mapping[str, Any]
    start: "Job | None" = None

    @functools.cached_property
    def resolved(self) -> ConfigDict:
        """Its configuration, with the number of classes of own data filled in.

        Raises:
          ConfigError: for a value that cannot be.
          DataError: for own data that are not there.
        """
        config = configuration.load(self.spec, self.overrides)
        classes.fill_in(config, "train", Path())
        configuration.check(config)
        return config

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """Every key: {"optim.learning_rate": 0.007, ...}."""
        return configuration.flat(self.resolved)

    @property
    def training(self) -> dict[str, Any]:
        """The keys that its training depends on."""
        return _without(self.config, (*NEITHER, *EVALUATION))

    @functools.cached_property
    def arm(self) -> str:
        """Name of its training."""
        trains = _changed(self.training)
        trains["start"] = self.start.arm if self.start else self.config["init_from"]
        model, backbone = self.config["model.name"], str(self.config["model.backbone"])
        return f"{model}-{backbone.replace(':', '.')}-{digest(trains)}"

    @functools.cached_property
    def evaluation(self) -> str:
        """Name of its evaluation, among those of its arm."""
        evaluates = {k: v for k, v in self.config.items() if k.startswith(EVALUATION)}
        if not self.config["eval.crf"]:
            evaluates = _without(evaluates, ("crf.",))
        return digest(_changed(_without(evaluates, NEITHER)))

    def workdir(self, out: Path, seed: int) -> Path:
        """Of the training."""
        return out / "arms" / self.arm / f"seed{seed}"

    def folder(self, out: Path, seed: int) -> Path:
        """Of the evaluation: results.json, counts.npz, report.html and the rest."""
        return self.workdir(out, seed) / "evaluations" / self.evaluation

    def command(self, mode: str, out: Path, seed: int) -> list[str]:
        """Arguments of `python -m deeplab_jax.main`, not quoted for a shell."""
        keys = {"train.eval_every": 0, **self.overrides, "eval.image_counts": True, "seed": seed}
        if self.start:  # evaluation would compare the path with that of the training
            keys["init_from"] = self.start.workdir(out, seed) if mode == "train" else ""
        return [
            f"--config={self.spec}",
            *(f"--config.{key}={value}" for key, value in keys.items()),
            f"--mode={mode}",
            f"--workdir={self.workdir(out, seed)}",
        ]


def _without(config: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(prefixes)}


@functools.cache
def _defaults() -> dict[str, Any]:
    configuration.allow_siblings(CONFIGS / "common.py")
    return configuration.flat(importlib.import_module("common").base())


def _changed(config: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _defaults()
    return {k: v for k, v in config.items() if k not in defaults or defaults[k] != v}


def digest(values: Mapping[str, Any]) -> str:
    """A short name for them."""
    text = json.dumps(finite(values), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def tables() -> list[str]:
    """Names of all: `experiments/tables/NAME.py`."""
    return sorted(path.stem for path in Path(__file__).with_name("tables").glob("[!_]*.py"))


def table(name: str) -> ModuleType:
    """A table's module: its ROWS, and its CONTRASTS if it has any."""
    known = tables()
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"no table {name!r}{hint}; there are {', '.join(known)}")
    return importlib.import_module(f"experiments.tables.{name}")


def jobs(
    rows: Sequence[Row], scale: str, overrides: Mapping[str, Any]
) -> tuple[list[Job], dict[str, str]]:
    """What is to be done for rows, in their order.

    Args:
      rows: of one table, each after the one it starts from.
      scale: see `scaled`.
      overrides: over every row's own. A row that waits for a run on COCO no longer does where
        these name weights in init_from.

    Returns:
      (a job a row that can run, {label of any other row: why it cannot}).

    Raises:
      ConfigError, DataError: for an override that is no key or cannot be, for own data that are
        not there.
    """
    found: dict[str, Job] = {}
    left_out: dict[str, str] = {}
    for row in rows:
        needs = [need for need in row.needs if need != COCO or not overrides.get("init_from")]
        if needs or row.start in left_out:
            left_out[row.label] = f"needs {', '.join(needs) or row.start}"
            continue
        try:
            spec, own = scaled(row, scale)
        except ConfigError as error:
            left_out[row.label] = str(error)
            continue
        start = found[row.start] if row.start else None
        job = Job(row, spec, {**own, **overrides}, start)
        resolved = job.resolved
        try:
            networks.build(resolved)
        except ConfigError as error:
            left_out[row.label] = str(error)
        else:
            found[row.label] = job
    return list(found.values()), left_out


def chosen(jobs: Sequence[Job], text: str) -> list[Job]:
    """Those with `text` in their label, and those that they start from."""
    kept: dict[str, Job] = {}
    for job in jobs:
        chain = [job]
        while chain[-1].start:
            chain.append(chain[-1].start)
        if text in job.row.label:
            kept |= {link.row.label: link for link in reversed(chain)}
    return list(kept.values())


def arms(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """{arm: its jobs}. An arm comes after the one that it starts from, if rows do."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.arm, []).append(job)
    return found
