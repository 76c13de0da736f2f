"""Configurations: loading a config file with its preset, overrides, and what follows from them."""

import difflib
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from deeplab_jax import crf, kinds, ops, optim
from deeplab_jax.data import datasets
from deeplab_jax.data.balance import CLASS_WEIGHTS
from deeplab_jax.data.pipeline import CLASSIFICATION, ON_ERROR, known_name
from deeplab_jax.errors import ConfigError, did_you_mean
from deeplab_jax.runtime import finite

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OUTPUTS = ("labels", "colours", "overlays", "probabilities")  # of --mode=predict
OF_FILES = ("outputs", "batch_size", "archive")  # keys of `predict` that are not of one image
ARCHIVES = ("voc", "cityscapes")  # datasets with a test server
ON_NAN = ("stop", "skip")
TILE_SIZE = (1025, 1025)  # of images too large to be seen whole
# What `check` asks of numbers.
NOT_NEGATIVE = (
    "seed",
    "log_every",
    "data.num_workers",
    "train.eval_every",
    "train.checkpoint_every",
    "train.steps",
    "train.max_skipped",
    "loss.hard_example_mining_step",
    "loss.auxiliary_weight",
    "optim.slow_start_step",
    "optim.weight_decay",
)
AT_LEAST_1 = (
    "spatial_shards",
    "model.output_stride",
    "model.batch_norm_groups",
    "eval.model.output_stride",
    "train.batch_size",
    "train.keep_checkpoints",
    "eval.batch_size",
    "predict.batch_size",
    "data.bootstrap_copies",
    "data.max_pixels",
    "data.max_unpacked_bytes",
    "data.max_unpacked_files",
    "data.num_threads",
    "optim.learning_rate_decay_step",
    "crf.iterations",
    "tune_crf.images",
)
ABOVE_0 = ("crf.sigma_alpha", "crf.sigma_beta", "crf.sigma_gamma")
BELOW_1 = ("loss.label_smoothing", "optim.momentum", "train.ema_decay")


def load(spec: str, overrides: Mapping[str, Any] | None = None) -> ml_collections.ConfigDict:
    """Loads "FILE.py" or "FILE.py:preset"; the file is executed, so trust it as you trust code.

    Args:
      spec: path of a file with `get_config(preset)`, and what to pass to it.
      overrides: {"optim.learning_rate": 0.01, ...}.

    Raises:
      ConfigError: no such file, preset or key, or a value of the wrong type.
    """
    path, _, preset = spec.partition(":")
    check_file(path)
    allow_siblings(path)
    module_spec = importlib.util.spec_from_file_location(f"config_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    try:
        config = module.get_config(preset)
    except ValueError as error:
        raise ConfigError(f"{spec}: {error}") from error
    config.lock()
    for key, value in (overrides or {}).items():
        check_no_section(config, key)
        try:
            config.update_from_flattened_dict({key: value})
            check_no_section(config, key)
        except (KeyError, AttributeError) as error:
            raise ConfigError(unknown_key(config, key)) from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.{key}={value!r}: {error}") from error
    return config


def check_file(path: str | Path) -> None:
    """Raises ConfigError unless `path` is a Python file: no other is a configuration.

    Python would execute whatever is in it, whatever its name says.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--config={path}: no such file")
    if Path(path).suffix != ".py":
        raise ConfigError(
            f"--config={path}: a configuration is a Python file, FILE.py, and others are not read; "
            "a run's config.json is a record of it: give the FILE.py and the --config.KEY=VALUE "
            "that it came from"
        )


def check_no_section(config: ml_collections.ConfigDict, key: str) -> None:
    """Raises ConfigError if `key` is, or was made, a section: overrides are of keys in it."""
    for word in key.split("."):
        config = config.get(word) if hasattr(config, "items") else None
    if hasattr(config, "items") and key not in kinds.MAPPINGS:
        raise ConfigError(f"config.{key} is a section: override its keys one by one")


def changes(spec: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that make `load(spec)` equal to `config`."""
    plain, out = load(spec), {}
    for key, value in flat(config).items():
        if flat(plain)[key] != value:  # a linked key may have changed with an earlier one
            plain.update_from_flattened_dict({key: value})
            out[key] = value
    return out


def differences(path: Path, config: Mapping[str, Any]) -> list[str]:
    """What the stored configuration at `path` has otherwise than `config`, a line a key."""
    try:
        stored = flat(json.loads(path.read_text()))
    except (OSError, ValueError):
        return []  # of an older version, or none: nothing to compare with
    now = flat(json.loads(to_json(config)))
    keys = [key for key in now if key in stored and now[key] != stored[key]]
    return [f"{key}={now[key]}, it was {stored[key]}" for key in keys]


def allow_siblings(path: str | Path) -> None:
    """Lets a config file import its neighbours (`import common`), wherever it is run from."""
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)


def unknown_key(config: ml_collections.ConfigDict, key: str) -> str:
    """The sentence for a key that is not in the config, with the nearest that is."""
    keys = flat(config)
    hint = did_you_mean(key, keys)
    if not hint:  # a typo in the last word, or the right word in the wrong place
        leaves = {name.split(".")[-1]: name for name in keys}
        near = difflib.get_close_matches(key.split(".")[-1], leaves, n=1)
        hint = f" (did you mean {leaves[near[0]]!r}?)" if near else ""
    return f"config has no {key!r}{hint}"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.learning_rate": 0.007, ...}"""
    out = {}
    for key, value in config.items():
        section = isinstance(value, Mapping) or hasattr(value, "items")
        if section and prefix + key not in kinds.MAPPINGS:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def check(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value that would only fail later, naming it."""
    values = flat(config)
    kinds.check(values)
    classes = values["model.num_classes"]
    classifier = values["model.name"] == "classifier"
    most, why = (2**16, "a classifier's are") if classifier else (256, "labels are bytes,")
    if classes is None:
        raise ConfigError("model.num_classes is not set: --config.model.num_classes=N")
    if not 1 <= classes <= most:
        raise ConfigError(f"model.num_classes={classes}: {why} 1 to {most} classes")
    sizes = ("data.crop_size", "eval.crop_size", "predict.crop_size")
    for key in (*sizes, "eval.tile_size", "predict.tile_size"):
        size = values[key]
        if size is None and key != "data.crop_size":
            continue
        if not (isinstance(size, tuple) and len(size) == 2 and all(n >= 1 for n in size)):
            raise ConfigError(f"{key}={size}: takes (height, width), for instance '(513, 513)'")
    for key in NOT_NEGATIVE:
        if values[key] < 0:
            raise ConfigError(f"{key}={values[key]}: must not be negative")
    for key in AT_LEAST_1:
        if values[key] is not None and values[key] < 1:
            raise ConfigError(f"{key}={values[key]}: must be at least 1")
    for key in ABOVE_0:
        if not values[key] > 0:
            raise ConfigError(f"{key}={values[key]}: must be above 0")
    if values["crf.method"] not in (None, *crf.METHODS):
        raise ConfigError(f"crf.method={values['crf.method']}: takes {', '.join(crf.METHODS)}")
    for key in ("tune_crf.w1", "tune_crf.sigma_alpha", "tune_crf.sigma_beta"):
        axis = values[key]
        if not (isinstance(axis, tuple) and axis and list(axis) == sorted(set(axis))):
            raise ConfigError(f"{key}={axis}: takes rising values, for instance '(3.0, 4.0)'")
    for key in BELOW_1:
        if values[key] is not None and not 0 <= values[key] < 1:
            raise ConfigError(f"{key}={values[key]}: takes 0 up to, not including, 1")
    low, high = values["data.min_scale_factor"], values["data.max_scale_factor"]
    if not 0 < low <= high or values["data.scale_factor_step_size"] < 0:
        raise ConfigError(
            f"data.min_scale_factor={low}, max {high}: takes 0 < min <= max, step >= 0"
        )
    if not classifier and not 0 <= values["data.ignore_label"] <= 255:
        raise ConfigError(
            f"data.ignore_label={values['data.ignore_label']}: labels are bytes, 0 to 255. What "
            'else is void in a folder\'s masks its classes.json says: "ignore": {"ids": [...]}'
        )
    for key in ("eval.trimap_widths", "eval.upper_bounds"):
        if any(width <= 0 for width in values[key]):
            raise ConfigError(f"{key}={values[key]}: px above 0")
    unknown = set(values["export.platforms"]) - set(PLATFORMS)
    if unknown or not values["export.platforms"]:
        raise ConfigError(
            f"export.platforms={values['export.platforms']}: takes some of {', '.join(PLATFORMS)}"
        )
    _check_outputs(values, classes)
    if values["data.records"] and values["data.name"] not in datasets.DATASETS:
        raise ConfigError(f"data.records packs published datasets, not {values['data.name']}")
    augment_on, name = values["data.augment_on"], values["data.name"]
    known_name(name)
    if augment_on not in ("host", "device"):
        raise ConfigError(f"data.augment_on={augment_on!r}: is not one of host, device")
    if augment_on == "device" and name in ("synthetic", *CLASSIFICATION):
        raise ConfigError(
            f"data.augment_on=device does not go with data.name={name}: set it to host"
        )
    for key in ("min_resize_value", "max_resize_value", "resize_factor"):
        value = values[f"data.{key}"]
        if value is not None and (value < 1 or values["data.min_resize_value"] is None):
            raise ConfigError(f"data.{key}={value}: at least 1, and with data.min_resize_value")
    for key in ("eval.eval_scales", "predict.eval_scales"):
        scales = values[key]
        if not (isinstance(scales, tuple) and scales and all(s > 0 for s in scales)):
            raise ConfigError(f"{key}={scales}: takes scales above 0, for instance '(0.5, 1.0)'")
    for key in ("eval.class_subset", "data.bootstrap_classes"):
        wrong = [i for i in values[key] if not 0 <= i < classes]
        if wrong:
            raise ConfigError(f"{key}: ids {wrong} are outside 0..{classes - 1}")
    for mode in ("eval", "predict"):
        tile, overlap = values[f"{mode}.tile_size"], values[f"{mode}.tile_overlap"]
        if not 0 <= overlap < min(tile or TILE_SIZE) / 2:
            raise ConfigError(
                f"{mode}.tile_overlap={overlap}: takes 0 to below half of {tile or TILE_SIZE}"
            )
        if tile and values[f"{mode}.crf"]:
            raise ConfigError(f"{mode}.tile_size: the CRF needs images whole")
        resize = values[f"{mode}.resize"]
        pair = isinstance(resize, tuple) and len(resize) == 2
        if resize is not None and not all(
            isinstance(n, int) and n >= 1 for n in (resize if pair else (resize,))
        ):
            raise ConfigError(
                f"{mode}.resize={resize}: takes (height, width), a longer side, or None"
            )
        if tile and resize is not None:
            raise ConfigError(f"{mode}.tile_size does not go with {mode}.resize")
    for key in ("eval.tile_size", "eval.resize"):
        if values[key] and values["model.heads"]:
            raise ConfigError(f"{key}: several heads are evaluated on whole images alone")
    if values["eval.resize"] and values["eval.crf"]:
        raise ConfigError("eval.resize: the CRF is evaluated at the images' own size alone")
    if values["data.on_error"] not in ON_ERROR:
        raise ConfigError(f"data.on_error={values['data.on_error']}: takes {', '.join(ON_ERROR)}")
    if values["train.on_nan"] not in ON_NAN:
        raise ConfigError(f"train.on_nan={values['train.on_nan']}: takes {', '.join(ON_NAN)}")
    _check_classifier(values, classifier)
    _check_label_map(values, classes)
    datasets.check_channels(values["data.name"], values["data.channels"])
    if values["model.channel_groups"] and values["train.freeze_backbone"]:
        raise ConfigError("train.freeze_backbone does not go with model.channel_groups")
    _check_loss(values, classes)
    _check_optim(values)


def _check_outputs(values: Mapping[str, Any], classes: int) -> None:
    outputs, archive = values["predict.outputs"], values["predict.archive"]
    unknown = [output for output in outputs if output not in OUTPUTS]
    if unknown or not outputs:
        raise ConfigError(
            f"predict.outputs={outputs}: takes some of {', '.join(OUTPUTS)}"
            + "".join(did_you_mean(output, OUTPUTS) for output in unknown[:1])
        )
    if archive is None:
        return
    if archive not in ARCHIVES:
        raise ConfigError(
            f"predict.archive={archive!r}: is not one of {', '.join(ARCHIVES)}"
            + did_you_mean(archive, ARCHIVES)
        )
    known = len(datasets.DATASETS[archive].names)
    if classes != known:
        raise ConfigError(
            f"predict.archive={archive}: that server takes {known} classes, and "
            f"model.num_classes is {classes}"
        )
    if "labels" not in outputs:
        raise ConfigError(f"predict.archive packs label images: predict.outputs={outputs} has none")


def _check_label_map(values: Mapping[str, Any], classes: int) -> None:
    given, ignored = values["data.label_map"], values["data.ignore_label"]
    if given is None:
        return
    if values["data.name"] != "folder":
        raise ConfigError("data.label_map is for data.name=folder; published datasets have theirs")
    fits = isinstance(given, Mapping) and all(
        isinstance(raw, int) and raw >= 0 and (label == ignored or label in range(classes))
        for raw, label in given.items()
    )
    if not fits:
        raise ConfigError(
            f"data.label_map={given}: takes {{id in the masks: id of a class or {ignored} (void)}},"
            f" for instance '{{0: {ignored}, 1: 0}}'"
        )


def _check_classifier(values: Mapping[str, Any], classifier: bool) -> None:
    name = values["data.name"]
    if classifier != (name in CLASSIFICATION):
        raise ConfigError(
            f"model.name={values['model.name']} does not go with data.name={name}: a classifier "
            f"takes {', '.join(CLASSIFICATION)}, which have a class an image; other networks have "
            "label maps"
        )
    for key in ("data.min_crop_area", "eval.central_fraction"):
        if not 0 < values[key] <= 1:
            raise ConfigError(f"{key}={values[key]}: a share, above 0 and at most 1")
    if values["data.max_aspect_ratio"] < 1 or not 0 <= values["data.color_jitter"] <= 1:
        raise ConfigError("data.max_aspect_ratio is at least 1, data.color_jitter 0 to 1")
    if not classifier:
        return
    ignored = values["data.ignore_label"]
    if 0 <= ignored < values["model.num_classes"]:
        raise ConfigError(f"data.ignore_label={ignored} is one of the classes; set it to -1")
    if values["eval.crop_size"] is None:
        raise ConfigError("eval.crop_size: a classifier sees images of one size, (height, width)")
    without = {
        "eval.crf": False,
        "eval.eval_scales": (1.0,),
        "eval.tile_size": None,
        "eval.resize": None,
        "eval.upper_bounds": (),
        "eval.class_subset": (),
        "data.bootstrap_classes": (),
        "model.channel_groups": None,
    }
    for key, value in without.items():
        if values[key] != value:
            raise ConfigError(f"{key} is of label maps; a classifier's is {value}")
    if isinstance(values["loss.class_weights"], str):
        raise ConfigError(
            "loss.class_weights: those by name count pixels of label maps; give a number a class"
        )


def _check_loss(values: Mapping[str, Any], classes: int) -> None:
    weights = values["loss.class_weights"]
    if isinstance(weights, (tuple, list)):
        fits = len(weights) == classes
        fits = fits and all(isinstance(w, (int, float)) and w >= 0 for w in weights)
    else:
        fits = weights is None or weights in CLASS_WEIGHTS
    if not fits:
        raise ConfigError(
            f"loss.class_weights={weights!r}: takes None, {classes} numbers of at least 0 "
            f"(model.num_classes of them), or one of {', '.join(CLASS_WEIGHTS)}"
        )
    chance = values["loss.sample_probability"]
    if not 0 < chance <= 1:
        raise ConfigError(f"loss.sample_probability={chance}: above 0 and at most 1")
    share = values["loss.top_k_percent_pixels"]
    if not 0 < share <= 1:
        raise ConfigError(f"loss.top_k_percent_pixels={share}: a share, above 0 and at most 1")


def _check_optim(values: Mapping[str, Any]) -> None:
    choices = {"name": optim.NAMES, "schedule": optim.SCHEDULES, "slow_start_burnin": optim.BURNINS}
    for key, allowed in choices.items():
        value = values[f"optim.{key}"]
        if value not in allowed:
            raise ConfigError(
                f"optim.{key}={value!r}: is not one of {', '.join(allowed)}"
                + did_you_mean(value, allowed)
            )
    slow, steps = values["optim.slow_start_step"], values["train.steps"]
    if slow and slow >= steps:
        raise ConfigError(f"optim.slow_start_step={slow}: must be below train.steps={steps}")
    clip = values["optim.clip_norm"]
    if clip is not None and clip <= 0:
        raise ConfigError(f"optim.clip_norm={clip}: takes None or a norm above 0")


def eval_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `models.build` for evaluation: `config.model` with `config.eval.model` over it.

    Rates that were written out for training keep their reach in pixels when the output stride
    changes: 6,12,18 at 16 become 12,24,36 at 8 ([V3] Sec. 4.1).
    """
    model = dict(config["model"])
    override = {key: value for key, value in config["eval"]["model"].items() if value is not None}
    old = model["output_stride"]
    model |= override
    rates = model["atrous_rates"]
    if "atrous_rates" not in override and rates and not isinstance(rates, str):
        model["atrous_rates"] = ops.default_atrous_rates(model["output_stride"], rates, at=old)
    return model


def predict_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `predict.predict`: `config.predict`, with the CRF's own if it is on.

    Without those that are of the files that `--mode=predict` writes.
    """
    given = {key: value for key, value in config["predict"].items() if key not in OF_FILES}
    return given | {"crf": dict(config["crf"]) if given["crf"] else None}


def to_json(config: Mapping[str, Any]) -> str:
    """The resolved configuration as plain JSON; YAML of a ConfigDict would carry Python objects."""
    as_dict = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.dumps(finite(as_dict), indent=1) + "\n"
