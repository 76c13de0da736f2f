"""What kinds of values a configuration may hold, where ml_collections takes any.

It looks at neither what is in a tuple, nor at keys whose values are of several types, and None is
fine with it everywhere.
"""

import math
from collections.abc import Mapping
from typing import Any

from deeplab_jax.errors import ConfigError

WHOLE, NUMBER, WORD = "whole number", "number", "word"
_TYPES = {WHOLE: int, NUMBER: (int, float), WORD: str, "tuple": (tuple, list)}
# What the elements of tuples are.
ELEMENTS = {
    "model.multi_grid": WHOLE,
    "model.channel_groups": WHOLE,
    "model.image_pooling_stride": WHOLE,
    "model.image_pooling_crop_size": WHOLE,
    "model.atrous_rates": WHOLE,
    "model.decoder_output_stride": WHOLE,
    "model.input_scales": NUMBER,
    "data.crop_size": WHOLE,
    "data.bootstrap_classes": WHOLE,
    "eval.model.atrous_rates": WHOLE,
    "eval.crop_size": WHOLE,
    "eval.tile_size": WHOLE,
    "eval.resize": WHOLE,
    "eval.eval_scales": NUMBER,
    "eval.class_subset": WHOLE,
    "eval.trimap_widths": WHOLE,
    "eval.upper_bounds": WHOLE,
    "predict.crop_size": WHOLE,
    "predict.tile_size": WHOLE,
    "predict.resize": WHOLE,
    "predict.eval_scales": NUMBER,
    "predict.outputs": WORD,
    "export.platforms": WORD,
    "loss.class_weights": NUMBER,
    "tune_crf.w1": NUMBER,
    "tune_crf.sigma_alpha": NUMBER,
    "tune_crf.sigma_beta": NUMBER,
}
# Keys that take values of several types.
SEVERAL = {
    "checkpoint": (WORD, WHOLE),
    "model.atrous_rates": (WORD, "tuple"),
    "model.decoder_output_stride": (WHOLE, "tuple"),
    "model.heads": ("mapping",),
    "data.label_map": ("mapping",),
    "eval.model.atrous_rates": (WORD, "tuple"),
    "eval.crop_size": ("tuple",),
    "eval.resize": (WHOLE, "tuple"),
    "predict.crop_size": ("tuple",),
    "predict.resize": (WHOLE, "tuple"),
    "loss.class_weights": (WORD, "tuple"),
}
# Keys whose values are mappings, not sections: the kinds of their keys and values.
MAPPINGS = {"model.heads": (WORD, WHOLE), "data.label_map": (WHOLE, WHOLE)}
# Keys that may be None, beside these.
OPTIONAL = (
    *SEVERAL,
    "model.num_classes",  # of a user's own data
    "model.multi_grid",
    "model.image_pooling_crop_size",
    "model.decoder_separable",
    "model.low_level",
    "model.dilation_start",
    "model.input_scales",
    "model.batch_norm_decay",
    "model.batch_norm_epsilon",
    "model.channel_groups",
    "data.min_resize_value",
    "data.max_resize_value",
    "data.resize_factor",
    "train.ema_decay",
    "optim.clip_norm",
    "eval.tile_size",
    "eval.model.output_stride",
    "predict.tile_size",
    "predict.archive",
    "crf.method",
)


def check(values: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value of a kind that its key does not take.

    Args:
      values: {key: value}, a whole configuration, flat.
    """
    for key, value in values.items():
        if value is None:
            if key not in OPTIONAL:
                raise ConfigError(f"{key}=None: needs a value")
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value}: is no finite number")
        kinds = SEVERAL.get(key)
        if kinds and not any(_is(value, kind) for kind in kinds):
            raise ConfigError(f"{key}={value!r}: takes a {' or a '.join(kinds)}")
        if key in MAPPINGS and not _is_mapping(value, *MAPPINGS[key]):
            raise ConfigError(f"{key}={value}: takes {{{' : '.join(MAPPINGS[key])}, ...}}")
        kind = ELEMENTS.get(key)
        wrong = [v for v in value if not _is(v, kind)] if kind and _is(value, "tuple") else []
        if wrong:
            raise ConfigError(f"{key}={value!r}: {wrong[0]!r} in it is no {kind}")


def _is_mapping(value: Any, of_keys: str, of_values: str) -> bool:
    try:
        items = list(value.items())
    except TypeError:  # ml_collections sorts them, which keys of several types cannot be
        return False
    return all(_is(key, of_keys) and _is(v, of_values) for key, v in items)


def _is(value: Any, kind: str) -> bool:
    if kind == "mapping":
        return hasattr(value, "items")
    finite = not isinstance(value, float) or math.isfinite(value)
    return isinstance(value, _TYPES[kind]) and not isinstance(value, bool) and finite
