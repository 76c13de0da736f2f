"""What a published dataset is."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from deeplab_jax.data import files
from deeplab_jax.errors import DataError

NONE = MappingProxyType({})


class Files(NamedTuple):
    """Of a split: paths in the same order, and whether the masks hold raw ids.

    `extras` are further files of the same images, by what they are: see `extras.KINDS`.
    """

    images: list[Path]
    masks: list[Path]
    raw: bool = True
    extras: Mapping[str, list[Path]] = NONE


NOTHING = Files([], [])  # of a split that there is not


class Archive(NamedTuple):
    """An archive that everybody may download, and whose digest is known.

    Attributes:
      name: of the file.
      urls: where it lies; the first that answers is taken.
      sha256: of the file, hexadecimal.
      size: bytes.
      folder: of the archive, whose content data.root is to hold; "": all of it.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    size: int
    folder: str = ""


class Dataset(NamedTuple):
    """A published dataset.

    Attributes:
      names: of the classes, by id; () where the dataset's own files tell them.
      splits: {split: images in the official release}.
      find: (root, split) → its files.
      where: what to download, and what data.root then holds.
      palette: [classes, 3] uint8 RGB; None: PASCAL VOC's.
      raw_ids: the raw id of each class; other raw ids are void. None: ids are as stored.
      read_names: root → names, where `names` is empty.
      label_maps: {"label_NAME": the raw id of each class} of further label maps.
      channels: {a value of data.channels beside "rgb": (keys of its extras, (root, files) → files
        of these channels)}.
      chosen: which of the release's images a split has, where it is not all of them.
      archives: what --mode=download gets; () where nothing is open, or no SHA-256 is known.
      by_hand: what these lack.
    """

    names: tuple[str, ...]
    splits: Mapping[str, int]
    find: Callable[[Path, str], Files]
    where: str
    palette: tuple[tuple[int, int, int], ...] | None = None
    raw_ids: tuple[int, ...] | None = None
    read_names: Callable[[Path], tuple[str, ...]] | None = None
    label_maps: Mapping[str, tuple[int, ...]] = NONE
    channels: Mapping[str, tuple[tuple[str, ...], Callable[[Path, Files], Files]]] = NONE
    chosen: str = ""
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""


def existing(path: Path) -> Path:
    """`path`; FileNotFoundError if there is nothing, which `find` tells with what to get."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return path


def read_numbered(path: Path) -> dict[int, str]:
    """{id: name} of a text file with a line "id: name" each.

    Raises:
      DataError: for another line.
    """
    out = {}
    for line in files.read_lines(existing(path)):
        number, colon, name = line.partition(":")
        if not (colon and number.strip().isdecimal() and name.strip()):
            raise DataError(f"{path}: line {line!r} is not 'id: name'; download the file again")
        out[int(number)] = name.strip()
    return out
