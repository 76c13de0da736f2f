"""A user's own images with COCO-style annotations: polygons or run lengths in JSON.

    DIR/images/...  DIR/train.json  DIR/val.json

The annotations of a split may also be called annotations/SPLIT.json, annotations/instances_SPLIT*
.json or SPLIT/_annotations.coco.json; a single .json file in DIR or DIR/annotations is split as a
folder without lists is (data/folder.py). Images may lie in images/, images/SPLIT/, SPLIT/ or beside
the annotations.

Classes are the file's categories in order of their ids, from 1; 0 is "background": what no object
covers, and a category of that name. How objects become a label map, data/coco_annotations.py says.
"""

import dataclasses
import functools
import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.data import files, folder, image_files
from deeplab_jax.data.coco_annotations import mask_of
from deeplab_jax.data.labels import Labels, check_names
from deeplab_jax.errors import DataError, first_few

BACKGROUND = "background"
FILES = (  # of a split
    *("{}.json", "annotations/{}.json", "annotations/instances_{}*.json"),
    "{}/_annotations.coco.json",
)
NEEDED = {  # of the file's entries; ids are numbers, but for some tools' images
    "images": {"id": int | str, "file_name": str, "height": int, "width": int},
    "annotations": {"image_id": int | str, "category_id": int},
    "categories": {"id": int, "name": str},
}


@dataclasses.dataclass(frozen=True)
class CocoJson:
    """Random-access source of images and their objects.

    Attributes:
      path: the annotations file.
      images: paths.
      sizes: (height, width) of each image.
      objects: the annotations of each image.
      labels: {category id: label}.
      ignore_label: of crowds.
    """

    path: Path
    images: Sequence[Path]
    sizes: Sequence[tuple[int, int]]
    objects: Sequence[Sequence[Mapping[str, Any]]]
    labels: Mapping[int, int]
    ignore_label: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        """{"image" [H, W, 3] uint8, "label" [H, W] uint8, "name"}.

        Raises:
          DataError: naming the file, and the annotation, and what is wrong with it.
        """
        path = self.images[index]
        image, mask = image_files.read_image(path), self.label(index)
        files.check_sizes(image, mask, path, self.path)
        return {"image": image, "label": mask, "name": path.stem}

    def label(self, index: int) -> np.ndarray:
        """The label map alone, [H, W] uint8.

        Raises:
          DataError: as above.
        """
        try:
            return mask_of(self.objects[index], self.sizes[index], self.labels, self.ignore_label)
        except DataError as error:
            raise DataError(f"{self.path}: {error} ({self.images[index].name})") from error

    def fingerprint(self) -> str:
        """Names and sizes of the files."""
        return f"{self.labels} {files.named_sizes([self.path, *self.images])}"


def source(root: str | Path, split: str, labels: Labels) -> CocoJson:
    """A split, as random access.

    Raises:
      DataError: for annotations that are not there or not COCO's, for other categories than those
        of `labels`, and for missing images.
    """
    root = folder.existing(root)
    path, whole = _annotations_file(root, split)
    given = _read(path)
    if (names := names_of(root, split)) != labels.names:
        raise DataError(f"{path}: has the categories {names}, the training split {labels.names}")
    images = {image["id"]: image for image in given["images"]}
    if whole and split != "all":
        names = {image["file_name"]: image["id"] for image in images.values()}
        images = {names[n]: images[names[n]] for n in folder.tenth(sorted(names), split, root)}
    objects = {i: [] for i in images}
    for annotation in given["annotations"]:
        if annotation["image_id"] in objects:
            objects[annotation["image_id"]].append(annotation)
    if not images:
        raise DataError(f"{path}: lists no images")
    places = [root / "images", root / "images" / split, root / split, path.parent, root]
    found = {i: _find(image["file_name"], places) for i, image in images.items()}
    missing = [images[i]["file_name"] for i, image in found.items() if image is None]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} images are not in {root / 'images'} or beside it:\n"
            + first_few(missing)
        )
    return CocoJson(
        path,
        list(found.values()),
        [(image["height"], image["width"]) for image in images.values()],
        list(objects.values()),
        _labels_of(given["categories"]),
        labels.ignore_label,
    )


def names_of(root: str | Path, split: str) -> tuple[str, ...]:
    """The class names of a split's categories, by label, "background" the first.

    Raises:
      DataError: as `source`.
    """
    path, _ = _annotations_file(folder.existing(root), split)
    categories = _read(path)["categories"]
    labels = _labels_of(categories)
    by_label = {labels[c["id"]]: c["name"] for c in categories} | {0: BACKGROUND}
    names = tuple(by_label[label] for label in range(len(by_label)))
    check_names(path, names)
    return names


def _annotations_file(root: Path, split: str) -> tuple[Path, bool]:
    """(the split's file, whether it is that of all splits)."""

    def of(name):
        patterns = [pattern.format(glob.escape(name)) for pattern in FILES]
        return [path for pattern in patterns for path in sorted(root.glob(pattern))]

    if not split or files.leads_out(split):
        raise DataError(f"{root}: a split has a plain name, not {split!r}")
    if found := of(split):
        return found[0], False
    files_there = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    if len(files_there) == 1 and not of("train") and not of("val"):
        return files_there[0], True
    patterns = [pattern.format(split) for pattern in FILES]
    there = ", ".join(str(path.relative_to(root)) for path in files_there) or "none"
    raise DataError(f"{root}: no annotations {', '.join(patterns)}; its .json files are: {there}")


def _read(path: Path) -> dict[str, list[dict]]:
    """The file's lists, checked to have what is read of them."""
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


# The names and the source of a split need it, and large files take a while.
@functools.lru_cache(maxsize=2)
def _parsed(path: Path, *_state) -> dict[str, list[dict]]:
    try:
        given = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also for numbers too long, lists too deep
        raise DataError(f"{path}: not JSON ({error}); export the annotations again") from error
    for section, keys in NEEDED.items():
        entries = given.get(section) if isinstance(given, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path}: not COCO's format: needs a list {section!r}")
        for entry in entries:
            if not _has(entry, keys):
                raise DataError(
                    f"{path}: an entry of {section!r} without a proper {', '.join(keys)}: "
                    f"{str(entry)[:80]}"
                )
    for image in given["images"]:
        height, width = image["height"], image["width"]
        if min(height, width) < 1 or height * width > image_files.most_pixels():
            raise DataError(
                f"{path}: {image['file_name']!r} is said to be of {width}x{height} px; from 1 to "
                f"data.max_pixels={image_files.most_pixels()} are read"
            )
    for section in ("images", "categories"):
        ids = [entry["id"] for entry in given[section]]
        if len(set(ids)) < len(ids):
            raise DataError(f"{path}: {section!r} use an id twice")
    known = {image["id"] for image in given["images"]}
    stray = {a["image_id"] for a in given["annotations"]} - known
    if stray:
        raise DataError(
            f"{path}: {len(stray)} image_id of annotations that are no image:\n{first_few(stray)}"
        )
    files.check_inside(path, [image["file_name"] for image in given["images"]])
    return given


def _has(entry: Any, keys: Mapping[str, Any]) -> bool:
    """Whether an entry has values of these types; true and false are none of them."""
    values = [entry.get(key) for key in keys] if isinstance(entry, dict) else [None]
    return all(isinstance(v, t) and not isinstance(v, bool) for v, t in zip(values, keys.values()))


def _labels_of(categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    ids = sorted(c["id"] for c in categories if c["name"].lower() != BACKGROUND)
    labels = {c["id"]: 0 for c in categories if c["name"].lower() == BACKGROUND}
    return labels | {i: label for label, i in enumerate(ids, start=1)}


def _find(name: str, places: Sequence[Path]) -> Path | None:
    return next((place / name for place in places if files.is_file(place / name)), None)
