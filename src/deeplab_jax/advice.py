"""Configurations that train without an error and disappoint, told before the time is spent."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeplab_jax import models

PAPERS_CROP = 513  # px; what the papers chose their atrous rates for


def before_training(config: Mapping[str, Any]) -> list[str]:
    """A sentence for each trap in the whole configuration, with what to change."""
    found = (_untrained_taps(config) or _rates_of_another_stride(config), _slow_statistics(config))
    return [f"warning: {sentence}" for sentence in found if sentence]


# Keys that change what a backbone's weights compute, but neither their names nor their shapes.
CONVENTIONS = (
    ("data", "normalization"),
    ("model", "padding"),
    ("model", "batch_norm_epsilon"),
    ("model", "xception_depthwise"),
)


def before_loading(config: Mapping[str, Any], workdir: Path) -> list[str]:
    """A sentence for each convention in which the weights of a workdir of ours were trained
    otherwise than `config` will use them."""
    try:
        theirs = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        return []  # not a workdir, or of an older version: nothing to compare with
    found = []
    for section, key in CONVENTIONS:
        now = config[section][key]
        was = theirs.get(section, {}).get(key, now)
        if was != now:
            found.append(
                f"warning: {workdir} was trained with {section}.{key}={was}, now it is {now}: its "
                "weights will compute something else"
            )
    return found


def fitting_rates(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Atrous rates for the crop, where the model's reach past its features; else ()."""
    model, size = config["model"], config["data"]["crop_size"]
    if model["context"] != "aspp" or model["name"] in ("fcn", "classifier"):
        return ()
    rates = _rates(model)
    if max(rates, default=0) < max(_features(config)):
        return ()
    return tuple(max(1, round(rate * max(size) / PAPERS_CROP)) for rate in rates)


def _rates(model: Mapping[str, Any]) -> tuple[int, ...]:
    names = ("name", "output_stride", "atrous_rates", "fc_kernel_size")
    return models.head_rates(*(model[name] for name in names))


def _features(config: Mapping[str, Any]) -> list[int]:
    return [-(-n // config["model"]["output_stride"]) for n in config["data"]["crop_size"]]


def _untrained_taps(config: Mapping[str, Any]) -> str:
    """Taps that lie in the padding of every crop act as initialised once whole images are larger
    ([V3] Sec. 3.3 and Fig. 4 count the taps inside)."""
    smaller, size = fitting_rates(config), config["data"]["crop_size"]
    evaluated = config["eval"]["crop_size"]
    larger = evaluated is None or any(e > c for e, c in zip(evaluated, size))
    if not (smaller and larger):
        return ""
    rates, features = _rates(config["model"]), _features(config)
    return (
        f"atrous rates {rates} reach past the {features[0]}x{features[1]} features of "
        f"{size[0]}x{size[1]} crops: their outer taps are not trained and will disturb larger "
        f"images. Use larger crops, or --config.model.atrous_rates='{smaller}'"
    )


def _rates_of_another_stride(config: Mapping[str, Any]) -> str:
    """Rates as they are published for one output stride reach half as far, or twice, at another
    ([V3] Sec. 3.3 doubles them at 8). What smaller crops ask for is no mistake."""
    model, size = config["model"], config["data"]["crop_size"]
    if model["name"] not in ("v2", "v3", "v3plus") or model["context"] != "aspp":
        return ""
    stride, rates = model["output_stride"], _rates(model)
    usual = models.head_rates(model["name"], stride, "auto")
    others = [models.head_rates(model["name"], s, "auto") for s in (8, 16, 32) if s != stride]
    if rates == usual or rates not in others:
        return ""
    reach = rates[0] / usual[0] / min(1, max(size) / PAPERS_CROP)
    if 0.7 < reach < 1.4:
        return ""
    return (
        f"atrous rates {rates} at output stride {stride} reach {rates[0] * stride} to "
        f"{rates[-1] * stride} px, and are meant for another stride. Here they are "
        f"--config.model.atrous_rates='{usual}', which 'auto' follows"
    )


def _slow_statistics(config: Mapping[str, Any]) -> str:
    """The head's batch norms start at mean 0 and variance 1 unless the weights bring theirs."""
    model, train = config["model"], config["train"]
    norm = models.HEAD_NORM
    if model["name"] == "classifier":
        norm = models.BACKBONE_NORM.get(model["backbone"].split("_")[0], norm)
    decay = model["batch_norm_decay"] or norm[0]
    kept = decay ** train["steps"]
    has_norm = model["name"] in ("v3", "v3plus") and model["context"] != "none"
    has_norm |= model["name"] == "fcn" and model["backbone"] not in models.CLASSIFIERS
    has_norm |= model["name"] == "classifier" and model["backbone"] not in ("alexnet", "vgg16")
    if not (has_norm and train["fine_tune_batch_norm"] and kept > 0.05):
        return ""
    return (
        f"after {train['steps']} steps the running statistics of batch norm still hold "
        f"{100 * kept:.0f} % of where they started (decay {decay}), and evaluation uses them. "
        "Unless you start from a whole model use --config.model.batch_norm_decay=0.9"
    )
