"""Masks that are published in other files (.mat, JSON): written once as PNG, then read as others.

They lie in data.root/prepared/NAME. Also what reads MATLAB's files.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deeplab_jax import output
from deeplab_jax.errors import DataError, first_few


def folder(root: Path, name: str) -> Path:
    """Where the prepared files of a dataset lie."""
    return root / "prepared" / name


def write(targets: Sequence[Path], make: Callable[[int], np.ndarray], what: str) -> None:
    """Writes the PNG files that are not there yet.

    Each appears whole or not at all: a run that was stopped goes on where it was.

    Args:
      targets: the files to be, in one folder.
      make: index of a target → [H, W] or [H, W, 3] uint8.
      what: the files are, for the line of progress.

    Raises:
      DataError: if nothing can be written there; at the end, naming what `make` could not read.
    """
    missing = [i for i, path in enumerate(targets) if not path.is_file()]
    if not missing:
        return
    place = targets[missing[0]].parent
    output.say(f"{place}: writing {len(missing)} {what}, once")
    bad = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        with output.Progress(len(missing), f"prepare {what}") as progress:
            for i in missing:
                try:
                    output.write_whole(targets[i], _png(make(i)))
                except DataError as error:
                    bad.append(str(error))
                progress.advance()
    except OSError as error:
        raise DataError(
            f"{place}: cannot be written ({error.strerror or error}); {what} are kept there, once "
            "and for all: make data.root writable, or let it be a writable folder of links to the "
            "dataset's files"
        ) from error
    if bad:
        raise DataError(f"{len(bad)} of {len(missing)} {what} cannot be made:\n{first_few(bad)}")


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def read_mat(path: Path, *keys: str) -> Any:
    """A variable of a MATLAB file (before version 7.3), or a field in it: "GTcls", "Segmentation".

    Structs are dicts, and what has one element is that element.

    Raises:
      DataError: if the file is missing or damaged, or has no such variable.
    """
    from scipy import io as matlab

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        found = matlab.loadmat(path, variable_names=[keys[0]], simplify_cells=True)
    except Exception as error:  # damaged bytes end in whatever they happen to mean
        raise DataError(
            f"{path}: damaged or no MATLAB file ({error}); extract or download it again"
        ) from error
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            raise DataError(f"{path}: has no {'.'.join(keys)}; is it this dataset's file?")
        found = found[key]
    return found


def read_mat_ids(path: Path, *keys: str) -> np.ndarray:
    """As `read_mat`: a label map [H, W] of integers.

    Raises:
      DataError: also if it is none.
    """
    ids = read_mat(path, *keys)
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "f" and (ids == np.rint(ids)).all():
        ids = ids.astype(np.int64)  # MATLAB's own numbers are doubles
    if not isinstance(ids, np.ndarray) or ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise DataError(f"{path}: {'.'.join(keys)} is no label map (integers, height x width)")
    return ids


def translated(ids: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """table[ids], uint8; `table` has the new id of each raw one.

    Raises:
      DataError: for ids outside the table.
    """
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= len(table):
        raise DataError(
            f"{path}: ids {ids.min()} to {ids.max()}, but the dataset has 0 to {len(table) - 1}"
        )
    return table[ids].astype(np.uint8)
