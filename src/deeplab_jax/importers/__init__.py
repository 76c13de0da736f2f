"""Foreign weights into our variables: one file a source, each a table of renames.

The engine here finds the layout of a file by its names and applies its table; it knows no model
and imports none. `load` and `infer` are the doors.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deeplab_jax.errors import WeightsError, first_few
from deeplab_jax.importers import (
    jfzhang95,
    kazuto1011,
    ours,
    smp,
    tf_frozen,
    tf_slim,
    torch_backbones,
    torchvision,
    vainf,
    vgg,
)
from deeplab_jax.importers.ours import HEADER
from deeplab_jax.importers.readers import open_weights
from deeplab_jax.importers.table import Layout

# In this order: a trunk's names are also those of the models around it.
LAYOUTS = (
    ours.CLASSIFIER,
    ours.LAYOUT,
    *tf_frozen.LAYOUTS,
    *tf_slim.LAYOUTS,
    *torchvision.LAYOUTS,
    *smp.LAYOUTS,
    *vainf.LAYOUTS,
    *jfzhang95.LAYOUTS,
    *kazuto1011.LAYOUTS,
    *torch_backbones.LAYOUTS,
    *vgg.LAYOUTS,
)
WEIGHTS = "model.safetensors"
Source = str | Path | Mapping[str, Any]


__all__ = ["HEADER", "LAYOUTS", "WEIGHTS", "Identity", "identify", "infer", "load"]


class Identity(NamedTuple):
    """What a weight file is.

    Attributes:
      layout: its source, for people.
      model: keywords of `models.build`; a trunk's lack `num_classes`.
      normalization: `config.data.normalization` that it was trained with.
      trunk: whether it is a backbone alone.
      note: what else it needs.
    """

    layout: str
    model: dict[str, Any]
    normalization: str
    trunk: bool
    note: str


def load(
    source: Source,
    target: Any,
    log: Callable[[str], None] | None = None,
    mapping: dict[str, str] | None = None,
    name: str = "weights",
) -> Any:
    """Reads foreign weights into the shape of `target`.

    Args:
      source: a file (see `readers.open_weights`), or {foreign name: array}.
      target: variables {"params", "batch_stats"}: arrays or ShapeDtypeStructs.
      log: called with a sentence on what was loaded, skipped and left; None logs only what was
        left as it was, as a warning.
      mapping: filled with {our path: foreign name}.
      name: what to call a mapping in messages.

    Returns:
      Variables of the target's structure and dtypes, numpy arrays. Leaves of `target` stay as they
      are where the source is a trunk (a backbone alone), and where a classifier has another
      number of classes.

    Raises:
      WeightsError: unreadable file, unknown layout, a key without a rule, a leaf without a key,
        or a shape that differs; all of them are listed.
    """
    name, weights = _open(source, name)
    nets = [net for net in target["params"] if net.startswith("nets_")]
    if nets and not any(key.startswith(f"params/{nets[0]}/") for key in weights):
        # Late fusion starts from one network's weights in each of its nets.
        loaded = {}
        for net in nets:
            part = {group: tree[net] for group, tree in target.items() if net in tree}
            loaded[net] = load(weights, part, log, mapping, f"{name} for {net}")
        return {
            group: {net: loaded[net][group] for net in nets if group in loaded[net]}
            for group in target
        }
    layout = _detect(weights, name)
    leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    found = layout.rename(weights, {path: tuple(leaf.shape) for path, leaf in leaves.items()})

    kept, gaps = [], []
    for path in leaves.keys() - found.arrays.keys():
        head = path.split("/")[1] != "backbone"
        if (layout.trunk and head) or (found.other_classes and path in found.sources):
            kept.append(path)
        elif layout is ours.LAYOUT and re.match(r"params/(logits|upsampling)_\d+/", path):
            kept.append(path)  # FCN-16s starts from FCN-32s, 8s from 16s
        elif path not in found.sources:
            gaps.append(path)
    if found.problems or gaps:
        lists = (("of the file", found.problems), ("of the model, unfilled", gaps))
        raise WeightsError(
            f"{name}: read as {layout.name}, but it does not fit the model"
            + "".join(f"\n{title}:\n{first_few(sorted(x), 20)}" for title, x in lists if x)
        )
    for sentence in _report(name, layout, found, kept):
        (log or logging.getLogger(__name__).info)(sentence)
    if kept and not log:
        logging.getLogger(__name__).warning("%s", _kept(kept))
    if mapping is not None:
        mapping.update(found.sources)

    def fill(path, leaf):
        path = _path(path)
        return np.asarray(found.arrays[path], leaf.dtype) if path in found.arrays else leaf

    return jax.tree_util.tree_map_with_path(fill, target)


def infer(source: Source, **overrides: Any) -> dict[str, Any]:
    """The keywords of `models.build` for a file: backbone, head, classes and widths.

    They are read from names and shapes; a trunk's lack `num_classes`. What those cannot tell
    (output_stride, atrous_rates, multi_grid, align_corners) is the source's published default,
    unless overridden here.

    Raises:
      WeightsError: unreadable file or unknown layout.
    """
    return identify(source).model | overrides


def identify(source: Source) -> Identity:
    """What a file is: its source, its model, and the normalization of its images.

    Raises:
      WeightsError: unreadable file or unknown layout.
    """
    name, weights = _open(source)
    layout = _detect(weights, name)
    if layout.infer is None:
        found = ours.description(None if isinstance(source, Mapping) else Path(name))
        normalization = found["data"]["normalization"]
        return Identity(found["source"], found["model"], normalization, trunk=False, note="")
    shapes = {key: tuple(array.shape) for key, array in weights.items()}
    try:
        model = layout.infer(shapes)
    except WeightsError as error:
        raise WeightsError(f"{name}: {layout.name}, but {error}") from error
    except (KeyError, IndexError) as error:
        raise WeightsError(
            f"{name}: looks like {layout.name}, but {error} is not there as expected"
        ) from error
    except (ArithmeticError, TypeError, ValueError, StopIteration) as error:
        raise WeightsError(
            f"{name}: looks like {layout.name}, but of other shapes ({error})"
        ) from error
    normalization = layout.normalization
    if callable(normalization):
        normalization = normalization(model)
    return Identity(layout.name, model, normalization, layout.trunk, layout.note)


def _open(source: Source, name: str = "weights") -> tuple[str, Mapping[str, Any]]:
    if isinstance(source, Mapping):
        return name, {key: value if hasattr(value, "shape") else np.asarray(value)
                      for key, value in source.items()}  # fmt: skip
    path = Path(source).expanduser()
    if (path / WEIGHTS).is_file():  # a folder that `--mode=import` wrote
        path = path / WEIGHTS
    return str(path), open_weights(path)


def _detect(weights: Mapping[str, Any], name: str) -> Layout:
    for layout in LAYOUTS:
        if layout.matches(weights):
            return layout
    raise WeightsError(
        f"{name}: these names belong to no layout known here "
        f"({'; '.join(layout.name for layout in LAYOUTS)}). The first names:\n" + first_few(weights)
    )


def _report(name: str, layout: Layout, found, kept: list[str]):
    yield f"{name}: {layout.name}, {len(found.arrays)} arrays loaded. {layout.note}".strip()
    for why, keys in found.skipped.items():
        shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
        yield f"skipped {len(keys)}, {why}: {shown}"
    if found.widened:
        yield f"input channels past RGB start at zero: {', '.join(found.widened)}"
    if found.other_classes:
        yield "another number of classes: " + "; ".join(found.other_classes)
    if kept:
        yield _kept(kept)


def _kept(kept: list[str]) -> str:
    heads = sorted({"/".join(path.split("/")[1:3]) for path in kept})
    return f"left as initialised: {len(kept)} arrays of {', '.join(heads)}"


def _path(path) -> str:
    return "/".join(str(key.key) for key in path)
