"""A user's own folder: images/ and masks/ with the same stems.

    DIR/images/*.jpg|png|...  DIR/masks/*.png|tif|bmp  [DIR/classes.json]  [DIR/train.txt, val.txt]

`classes.json` (see data/labels.py) names the classes and says which ids or colours masks have for
them; `classes.txt` is their names alone, a line each. `train.txt` and `val.txt` (in DIR or in
DIR/lists/) name the stems of each split. Without them a tenth of the images, chosen by their names,
is "val" and the rest "train"; "all" is both.
"""

import os
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

from deeplab_jax.data import files, image_files
from deeplab_jax.data.labels import Labels, check_names, labels, read
from deeplab_jax.errors import DataError, first_few

CLASSES = ("classes.json", "classes.txt")


def source(root: str | Path, split: str, labels: Labels) -> files.Pairs:
    """A split of the folder, as random access.

    Raises:
      DataError: for files that are not there, have no partner, or are no files.
    """
    root = existing(root)
    images = _by_stem(root / "images", image_files.IMAGE_SUFFIXES)
    masks = _by_stem(root / "masks", image_files.MASK_SUFFIXES)
    lists = root / "lists" if (root / "lists").is_dir() else root
    listed = None  # the names a list gives; files outside it do not matter
    if split != "all" and any(
        files.is_file(lists / f"{name}.txt") for name in ("train", "val", split)
    ):
        listed = [_normal(name) for name in files.read_list(lists, split)]
        images, masks = ({s: x[s] for s in listed if s in x} for x in (images, masks))
    unmatched = sorted(images.keys() ^ masks.keys())
    if unmatched:
        raise DataError(
            f"{len(unmatched)} files in {root} have no partner of the same name"
            f"{_jpeg_masks(root / 'masks')}:\n"
            + first_few(
                f"{images[stem]}: no mask" if stem in images else f"{masks[stem]}: no image"
                for stem in unmatched
            )
        )
    if not images and listed is None:
        raise DataError(
            f"{root / 'images'}: no images ({', '.join(image_files.IMAGE_SUFFIXES)}) with masks of "
            f"the same name in {root / 'masks'}"
        )
    names = listed
    if listed is None:
        names = sorted(images) if split == "all" else tenth(sorted(images), split, root)
    missing = [f"{name} (in {lists / split}.txt)" for name in names if name not in images]
    if missing:
        raise DataError(f"{len(missing)} listed images do not exist:\n{first_few(missing)}")
    return files.Pairs(
        [images[name] for name in names],
        [masks[name] for name in names],
        len(labels.names),
        labels.ignore_label,
        labels.label_map,
        labels.colors or None,
        labels.others_void,
    )


def read_labels(root: str | Path, ignore_label: int) -> Labels | None:
    """What the folder's classes.json, or else its classes.txt, says; None without either.

    Raises:
      DataError: for a file in neither form.
    """
    of_json, of_names = (existing(root) / name for name in CLASSES)
    if of_json.is_file():
        return read(of_json, ignore_label)
    if not of_names.is_file():
        return None
    names = files.read_lines(of_names)
    check_names(of_names, names)
    return labels(names, ignore_label=ignore_label)


def existing(root: str | Path) -> Path:
    """`root`, if it is a folder.

    Raises:
      DataError: if it is none, or not set.
    """
    if not str(root):
        raise DataError("this dataset needs a folder: --config.data.root=DIR")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder (data.root)")
    return root


def tenth(names: Sequence[str], split: str, root: Path) -> list[str]:
    """The names of "val", a tenth chosen by a hash of them, or of "train", the rest."""
    if split not in ("train", "val"):
        raise DataError(f"{root}: split {split!r} needs a list {split}.txt")
    by_hash = sorted(names, key=lambda name: zlib.crc32(os.fsencode(name)))
    val = set(by_hash[: max(1, len(names) // 10)])
    chosen = [name for name in names if (name in val) == (split == "val")]
    if not chosen:
        raise DataError(f"{root}: a single image cannot be split; add more, or write train.txt")
    return chosen


def _by_stem(directory: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder; data.root needs images/ and masks/")
    found = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() not in suffixes:
            continue
        if not path.is_file():
            raise DataError(f"{path}: no file (a folder, or a link to nowhere); remove it")
        stem = _normal(path.stem)
        if stem in found:
            raise DataError(f"{path} and {found[stem].name} have the same name; keep one")
        found[stem] = path
    return found


def _normal(name: str) -> str:
    """One spelling of accented letters: file systems and editors differ in it."""
    return unicodedata.normalize("NFC", name)


def _jpeg_masks(directory: Path) -> str:
    if not any(path.suffix.lower() in (".jpg", ".jpeg") for path in directory.iterdir()):
        return ""
    return f" ({directory} holds JPEG files, which cannot be masks: compression changes ids)"
