"""Foreign weights into our variables: one file a source, each a table of renames.

The engine here reads files, finds the layout by its names and applies its table; it knows no
model and imports none. `load` is the door.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplab_jax.errors import WeightsError, first_few
from deeplab_jax.importers import tf_mobilenet, torch_mobilenet
from deeplab_jax.importers.table import Layout

LAYOUTS = (tf_mobilenet.FOLDED, torch_mobilenet.TRUNK)


def load(source: str | Path | Mapping[str, np.ndarray], target: Any, log=None) -> Any:
    """Reads foreign weights into the shape of `target`.

    Args:
      source: path of an .npz file, or {foreign name: array}.
      target: variables {"params", "batch_stats"}: arrays or ShapeDtypeStructs.
      log: called with a sentence on what was loaded and what was left; None is silent.

    Returns:
      Variables of the target's structure and dtypes, numpy arrays. A trunk (a backbone alone)
      leaves the other leaves of `target` as they are.

    Raises:
      WeightsError: unreadable file, unknown layout, a key without a rule, a leaf without a key,
        or a shape that differs; all of them are listed.
    """
    name = "weights" if isinstance(source, Mapping) else str(source)
    weights = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    layout = _detect(weights, name)
    leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    loaded, problems = layout.rename(weights, {p: tuple(x.shape) for p, x in leaves.items()})

    kept = []
    for path in leaves.keys() - loaded.keys():
        if layout.trunk and path.split("/")[1] != "backbone":
            kept.append(path)
        else:
            problems.append(f"{path}: nothing in the file fills it")
    if problems:
        raise WeightsError(
            f"{name}: read as {layout.name}, but it does not fit the model:\n"
            + first_few(sorted(problems), 20)
        )
    if log:
        log(f"{name}: {layout.name}, {len(loaded)} arrays loaded. {layout.note}")
        if kept:
            heads = sorted({"/".join(path.split("/")[1:3]) for path in kept})
            log(f"left as initialised: {len(kept)} arrays of {', '.join(heads)}")

    def fill(path, leaf):
        path = _path(path)
        return np.asarray(loaded[path], leaf.dtype) if path in loaded else leaf

    return jax.tree_util.tree_map_with_path(fill, target)


def _detect(weights: Mapping[str, np.ndarray], name: str) -> Layout:
    for layout in LAYOUTS:
        if layout.signature <= weights.keys():
            return layout
    raise WeightsError(
        f"{name}: these names belong to no layout known here "
        f"({'; '.join(layout.name for layout in LAYOUTS)}). The first names:\n" + first_few(weights)
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix != ".npz":
        raise WeightsError(f"{path}: only .npz weight files are read")
    try:
        # allow_pickle=False: an object array would run code of whoever wrote the file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        NotImplementedError,  # zipfile's, for a compression it does not know
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise WeightsError(f"{path}: not a readable .npz file ({error})") from error


def _path(path) -> str:
    return "/".join(str(key.key) for key in path)
