"""Pairs of image and mask files as a source, their lists, and what the ids in masks mean."""

import dataclasses
import errno
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from deeplab_jax.data import colors, image_files
from deeplab_jax.data.labels import IGNORE_LABEL, RGB
from deeplab_jax.errors import DataError, did_you_mean, first_few
from deeplab_jax.output import sha256


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Random-access source of image and mask files.

    Attributes:
      images, masks: paths, in the same order.
      num_classes: ids from 0 up to this are classes.
      ignore_label: the id that counts for nothing.
      label_map: [256], the id of each id that a mask has stored, -1 where there is none; None:
        they are the same.
      colors: {RGB: label} of masks in colours; None: there are none.
      others_void: colours that are not among these are void.
    """

    images: Sequence[Path]
    masks: Sequence[Path]
    num_classes: int
    ignore_label: int = IGNORE_LABEL
    label_map: np.ndarray | None = None
    colors: Mapping[RGB, int] | None = None
    others_void: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        """{"image" [H, W, 3] uint8, "label" [H, W] integer, "name"}; checks sizes and ids.

        Raises:
          DataError: naming the file and what is wrong with it.
        """
        image, mask = image_files.read_image(self.images[index]), self.label(index)
        check_sizes(image, mask, self.images[index], self.masks[index])
        return {"image": image, "label": mask, "name": self.images[index].stem}

    def fingerprint(self) -> str:
        """Names and sizes of the files, and what ids become."""
        label_map = None if self.label_map is None else self.label_map.tolist()
        meaning = f"{label_map} {sorted(self.colors.items())}" if self.colors else f"{label_map}"
        return f"{named_sizes([*self.images, *self.masks])} {meaning}"

    def label(self, index: int) -> np.ndarray:
        """The mask alone, [H, W] integer; checks its ids.

        Raises:
          DataError: as above.
        """
        path = self.masks[index]
        mask = image_files.read_mask(path, in_colors=bool(self.colors))
        if mask.ndim == 3:
            others = self.ignore_label if self.others_void else None
            return colors.labelled(mask, self.colors, others, path)
        return labelled(mask, self.num_classes, self.ignore_label, self.label_map, path)


def check_sizes(image: np.ndarray, mask: np.ndarray, image_path, mask_path) -> None:
    """Raises DataError unless image [H, W, 3] and mask [H, W] are of one size."""
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"{mask_path}: mask of {shown_size(mask.shape)} for an image of "
            f"{shown_size(image.shape)} ({image_path}); they must be the same size"
            + _turned(image, mask)
        )


def labelled(
    mask: np.ndarray, num_classes: int, ignore_label: int, label_map: np.ndarray | None, path
) -> np.ndarray:
    """The label map [H, W] of a stored mask: mapped, and its ids checked.

    Raises:
      DataError: for ids that are no class, not void, or not in the map.
    """
    if label_map is not None:
        mask = mapped(mask, label_map, path)
    check_ids(mask, num_classes, ignore_label, path)
    return mask


def fingerprint(source) -> str:
    """16 hexadecimal digits that differ where a source's examples, or their order, do.

    Of files it knows names and sizes, not contents. A source without a `fingerprint` method is
    known by its attributes if it is a dataclass, else by its length.
    """
    if hasattr(source, "fingerprint"):
        told = source.fingerprint()
    else:
        told = repr(source) if dataclasses.is_dataclass(source) else str(len(source))
    return hashlib.sha256(f"{type(source).__name__} {told}".encode()).hexdigest()[:16]


def shared(one, other, by_content: bool = False) -> list[Path]:
    """The image files of one source that are in another, too; of sources without files none.

    Args:
      by_content: also files elsewhere with the same bytes in them.
    """
    images, others = getattr(one, "images", ()), getattr(other, "images", ())
    there = {path.resolve() for path in others}
    if not by_content:
        return [path for path in images if path.resolve() in there]
    sizes = {path.stat().st_size for path in others}
    alike = [path for path in images if path.stat().st_size in sizes]
    wanted = {path.stat().st_size for path in alike}
    contents = {sha256(path) for path in others if path.stat().st_size in wanted}
    return [path for path in alike if sha256(path) in contents]


def named_sizes(paths: Sequence[Path]) -> list[tuple[str, int]]:
    """(name, bytes) of files, without their folders: a dataset may have moved."""
    return [(path.name, path.stat().st_size) for path in paths]


def mapped(mask: np.ndarray, label_map: np.ndarray, path) -> np.ndarray:
    """`mask` with the ids that `label_map` ([256], -1: none) has for those it stores.

    Raises:
      DataError: for ids that the map lacks, naming them.
    """
    inside = (mask >= 0) & (mask < len(label_map))
    labels = np.where(inside, label_map[np.where(inside, mask, 0)], -1)
    if (labels < 0).any():
        raise DataError(
            f"{path}: ids {_ids(np.unique(mask[labels < 0]))} are not in data.label_map, nor in "
            'classes.json; add them (to data.ignore_label, or "ignore", if they are void)'
        )
    return labels.astype(np.uint8)


def check_ids(mask: np.ndarray, num_classes: int, ignore_label: int, path) -> None:
    """Raises DataError if `mask` holds an id that is neither a class nor `ignore_label`."""
    outside = (mask != ignore_label) & ((mask < 0) | (mask >= num_classes))
    if not outside.any():
        return
    present, wrong = np.unique(mask), np.unique(mask[outside])
    hint = "raise model.num_classes, or map these ids to classes"
    if len(wrong) > 30:
        hint = "so many ids suggest a grey picture, a JPEG or smoothed edges rather than a mask"
    elif 255 in wrong:
        hint = "255 usually marks void: set data.ignore_label=255"
    raise DataError(
        f"{path}: ids {_ids(wrong)} are outside the {num_classes} classes 0..{num_classes - 1} "
        f"(ignore_label {ignore_label}; all ids in it: {_ids(present)}); {hint}"
    )


def _ids(ids: np.ndarray) -> str:
    shown = ", ".join(str(int(i)) for i in ids[:12])
    return shown + (f", ... ({len(ids)} ids)" if len(ids) > 12 else "")


def _turned(image: np.ndarray, mask: np.ndarray) -> str:
    if image.shape[:2] != mask.shape[::-1]:
        return ""
    return " (the image was turned upright by its EXIF orientation; turn the mask likewise)"


def shown_size(shape: Sequence[int]) -> str:
    """(height, width, ...) as people write it: WIDTHxHEIGHT."""
    return f"{shape[1]}x{shape[0]}"


def read_list(lists: Path, split: str) -> list[str]:
    """The names in LISTS/SPLIT.txt.

    Raises:
      DataError: if there is no such list, it is empty, or a name leads out of the dataset.
    """
    path = lists / f"{split}.txt"
    if not is_file(path):
        known = sorted(p.stem for p in lists.glob("*.txt") if p.stem != "classes")
        raise DataError(
            f"{path}: no such split list; there are {', '.join(known) or 'none'}"
            + did_you_mean(split, known)
        )
    names = read_lines(path)
    if not names:
        raise DataError(f"{path}: the list is empty")
    check_inside(path, names)
    return names


def check_inside(path: Path, names: Sequence[str]) -> None:
    """Raises DataError if a name of those in the file `path` leads out of the dataset.

    Links that lie in the dataset are followed: whoever put it there made them.
    """
    outside = [name for name in names if leads_out(name)]
    if outside:
        raise DataError(f"{path}: names must stay inside the dataset:\n{first_few(outside)}")


def leads_out(name: str) -> bool:
    """Whether a name, taken as one inside a folder, leads out of it, here or on Windows."""
    kinds = PurePosixPath(name), PureWindowsPath(name)
    return "\0" in name or any(path.anchor or ".." in path.parts for path in kinds)


def is_file(path: Path) -> bool:
    """`path.is_file()`; of a name longer than any file's, too, which Python raises an error for."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold something, stripped; a byte-order mark is no text."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # \r\n, too; names may hold other breaks
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error}); save it as UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def paired(
    images: list[Path],
    masks: list[Path],
    num_classes: int,
    ignore_label: int,
    label_map: np.ndarray | None = None,
) -> Pairs:
    """The source of these files.

    Raises:
      DataError: listing those that do not exist.
    """
    missing = [path for path in (*images, *masks) if not is_file(path)]
    if missing:
        raise DataError(f"{len(missing)} listed files do not exist:\n{first_few(missing)}")
    return Pairs(images, masks, num_classes, ignore_label, label_map)
