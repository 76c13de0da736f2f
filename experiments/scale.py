"""A row on other data than its paper's, or small enough for the embedded scenes."""

from collections.abc import Mapping
from typing import Any

from deeplab_jax import config as configuration
from deeplab_jax import ops
from deeplab_jax.errors import ConfigError
from experiments.rows import CONFIGS, Row

EMBEDDED = "embedded"
# What makes the paper's network what it is, apart from its backbone and its width.
STRUCTURE = (
    "output_stride",
    "image_pooling",
    "separable",
    "decoder_output_stride",
    "decoder_convs",
    "decoder_kernel_size",
    "low_level_channels",
    "fc_kernel_size",
    "multi_scale_features",
    "input_scales",
)
# Overrides that hold as they are.
AS_THEY_ARE = ("eval.", "model.multi_grid", "model.blocks", "optim.schedule")


def scaled(row: Row, scale: str) -> tuple[str, dict[str, Any]]:
    """("FILE.py:preset", overrides) of a row.

    Args:
      row: of a table.
      scale: "" is the row's own dataset, a name of configs/common.py's DATASETS another one,
        "embedded" MobileNetV2 at half width on the embedded scenes, with the row's structure:
        rates a third, channels half, steps, batch and learning rate the embedded recipe's, in the
        paper's proportions where the row changes them.

    Raises:
      ConfigError: for a row that has no such form.
    """
    if scale != EMBEDDED:
        return row.spec(scale), dict(row.overrides)
    if row.dataset in ("", "synthetic"):
        return row.spec(), dict(row.overrides)
    file = row.config.partition(":")[0]
    if file in ("fcn.py", "imagenet.py"):
        raise ConfigError("MobileNetV2 has neither FCN's skips nor a place in this comparison")
    plain = configuration.load(row.spec())
    paper = configuration.load(row.spec(), dict(row.overrides))
    spec = f"{CONFIGS}/{file}:mobilenet_v2,synthetic"
    small = configuration.load(spec)

    wanted = {f"model.{key}": paper.model[key] for key in STRUCTURE}
    wanted["model.atrous_rates"] = _rates(paper.model, small.model)
    if (paper.data.min_scale_factor, paper.data.max_scale_factor) == (1.0, 1.0):
        wanted |= {"data.min_scale_factor": 1.0, "data.max_scale_factor": 1.0}
    for key, value in row.overrides.items():
        ratio = _ratio(key, plain, small)
        if ratio is not None:
            wanted[key] = max(1, round(value * ratio))
        elif key.startswith(AS_THEY_ARE):
            wanted[key] = value
        elif key not in wanted and key not in ("data.min_scale_factor", "data.max_scale_factor"):
            raise ConfigError(f"{key} has no form on the embedded scenes")
    if paper.optim.schedule == "step" != plain.optim.schedule:
        decay = plain.optim.learning_rate_decay_step * small.train.steps / plain.train.steps
        wanted["optim.learning_rate_decay_step"] = round(decay)
    there = configuration.flat(small)
    return spec, {key: value for key, value in wanted.items() if there[key] != value}


def _ratio(key: str, plain: Mapping[str, Any], small: Mapping[str, Any]) -> float | None:
    """What a quantity of the paper's recipe is multiplied by; None: it is none."""
    if key not in ("train.steps", "train.batch_size", "model.decoder_channels"):
        return None
    return configuration.flat(small)[key] / configuration.flat(plain)[key]


def _rates(paper: Mapping[str, Any], small: Mapping[str, Any]) -> tuple[int, ...]:
    """The paper's rates for 513 px as rates for 193 px: a third, as configs/common.py has it."""
    rates = paper["atrous_rates"]
    if rates == "auto":
        return ops.default_atrous_rates(
            paper["output_stride"], small["atrous_rates"], at=small["output_stride"]
        )
    return tuple(max(1, round(rate / 3)) for rate in rates or ())
