"""Sources whose examples have more than an RGB image and a label map."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_jax.data import files, image_files


def _grey(path, encoded: bytes | None = None) -> np.ndarray:
    return image_files.read_image(path, encoded)[..., :1]


class Kind(NamedTuple):
    """What reads such a file, and how many channels it has."""

    read: Callable[..., np.ndarray]
    channels: int


# Label maps stay on their own, all else are further channels of the image.
KINDS = {
    "depth": Kind(_grey, 1),
    "hha": Kind(image_files.read_image, 3),
    "label_geometry": Kind(image_files.read_mask, 1),
}


def read(key: str, path, table: np.ndarray | None, encoded: bytes | None = None) -> np.ndarray:
    """Channels [H, W, C] uint8, or the label map [H, W] that `table` makes of the stored one."""
    array = KINDS[key].read(path, encoded)
    return array if table is None else files.mapped(array, table, path)


def joined(example: dict, extras: Mapping[str, np.ndarray], path) -> dict:
    """`example` with further label maps, and further channels behind its image's.

    Raises:
      DataError: for other sizes than the image's.
    """
    images = [example["image"]]
    for key, array in extras.items():
        files.check_sizes(images[0], array[..., 0] if array.ndim == 3 else array, path, key)
        if array.ndim == 3:
            images.append(array)
        else:
            example[key] = array
    if len(images) > 1:
        example["image"] = np.concatenate(images, axis=-1)
    return example


@dataclasses.dataclass(frozen=True)
class WithExtras:
    """Random-access source: image and mask of `pairs`, and what further files add to them.

    Attributes:
      extras: {key of `KINDS`: paths, in the order of the pairs}.
      tables: {key: id of each stored id} of the label maps among them.
    """

    pairs: files.Pairs
    extras: Mapping[str, Sequence[Path]]
    tables: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def images(self) -> Sequence[Path]:
        """The files of the first channels."""
        return self.pairs.images

    def __getitem__(self, index: int) -> dict:
        """As of `files.Pairs`, with C channels and {"label_NAME": [H, W] uint8}."""
        read_here = {
            key: read(key, paths[index], self.tables.get(key)) for key, paths in self.extras.items()
        }
        return joined(self.pairs[index], read_here, self.pairs.images[index])

    def label(self, index: int) -> np.ndarray:
        """The mask alone, as `files.Pairs.label`."""
        return self.pairs.label(index)

    def fingerprint(self) -> str:
        """Of the pairs, and names and sizes of the further files."""
        more = {key: files.named_sizes(paths) for key, paths in self.extras.items()}
        return f"{self.pairs.fingerprint()} {more}"
