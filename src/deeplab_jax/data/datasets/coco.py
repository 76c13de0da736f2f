"""MS COCO with PASCAL VOC's classes, as the papers pretrain on it, and COCO-Stuff."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax import output
from deeplab_jax.data import files
from deeplab_jax.data.coco_annotations import mask_of
from deeplab_jax.data.datasets import prepared
from deeplab_jax.data.datasets.dataset import (
    NOTHING,
    Archive,
    Dataset,
    Files,
    existing,
    read_numbered,
)
from deeplab_jax.data.labels import IGNORE_LABEL, VOC_CLASSES
from deeplab_jax.errors import DataError

_FILES = {
    "train": ("train2017",),
    "val": ("val2017",),
    "trainval": ("train2017", "val2017"),
    "train2014": ("train2014",),
    "val2014": ("val2014",),
}
# COCO's category of each of VOC's classes, in VOC's order.
_CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
_LABELS = {category: label for label, category in enumerate(_CATEGORIES, start=1)}
_MIN_PIXELS = 1000


def _images(root: Path, part: str) -> Path:
    """Where the images of "train2017" lie: beside the annotations, or in images/."""
    inside = root / "images" / part
    return inside if inside.is_dir() else existing(root / part)


def _coco(root: Path, split: str) -> Files:
    """annotations/instances_PART.json and the images in PART/, PART for instance train2017.

    [V3]'s "trainval minus minival" of 2014 is what 2017 calls train: "about 60K images" with
    regions of VOC's classes larger than 1000 pixels.
    """
    found = Files([], [])
    for part in _FILES.get(split, ()):
        folder = _images(root, part)
        names, masks = _prepared(root, part)
        found.images.extend(folder / name for name in names)
        found.masks.extend(masks)
    return found


def _prepared(root: Path, part: str) -> tuple[list[str], list[Path]]:
    """(names of the image files, masks) of the images that are taken.

    Their list is written last, and then makes the large JSON file superfluous.
    """
    place = prepared.folder(root, "coco") / part
    listed = place.with_name(f"{part}.txt")

    def masks(names):
        return [place / f"{Path(name).stem}.png" for name in names]

    if listed.is_file():
        names = files.read_lines(listed)
        if all(mask.is_file() for mask in masks(names)):
            return names, masks(names)
    images, objects = _read(existing(root / "annotations" / f"instances_{part}.json"))
    taken = [image for image in images if _pixels(objects[image.id]) > _MIN_PIXELS]
    taken.sort(key=lambda image: image.name)
    names = [image.name for image in taken]

    def make(index: int) -> np.ndarray:
        image = taken[index]
        return mask_of(objects[image.id], image.size, _LABELS, IGNORE_LABEL)

    prepared.write(masks(names), make, f"masks of {part}")
    output.write_whole(listed, "".join(f"{name}\n" for name in names))
    return names, masks(names)


class _Image(NamedTuple):
    id: int
    name: str
    size: tuple[int, int]  # (height, width)


def _read(path: Path) -> tuple[list[_Image], dict[int, list[dict[str, Any]]]]:
    """(images, {image id: its objects of VOC's classes}) of an annotations file."""
    output.say(f"reading {path}, once")
    try:
        content = json.loads(path.read_bytes())
        objects = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation["category_id"] in _LABELS:
                area = {"area": float(annotation["area"])}
                objects[annotation["image_id"]].append(annotation | area)
        images = [
            _Image(image["id"], Path(image["file_name"]).name, (image["height"], image["width"]))
            for image in content["images"]
        ]
        return images, objects
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: damaged or no COCO annotations file ({type(error).__name__}: {error}); "
            "extract or download it again"
        ) from error


def _pixels(objects: list[dict[str, Any]]) -> float:
    """Annotated pixels, as the file gives them; crowds are void and count for nothing."""
    return sum(thing["area"] for thing in objects if not thing.get("iscrowd"))


COCO = Dataset(
    names=tuple(VOC_CLASSES),
    splits={
        "train": 118287,
        "val": 5000,
        "trainval": 123287,
        "train2014": 82783,
        "val2014": 40504,
    },
    find=_coco,
    where=(
        "train2017.zip, val2017.zip and annotations_trainval2017.zip (cocodataset.org), or those "
        "of 2014; data.root holds annotations, train2017 and val2017"
    ),
    raw_ids=tuple(range(21)),
    chosen=f"those with more than {_MIN_PIXELS} annotated pixels of VOC's classes",
    archives=tuple(  # digests of TFDS
        Archive(f"{name}.zip", (f"http://images.cocodataset.org/{kind}/{name}.zip",), sha256, size)
        for kind, name, size, sha256 in (
            (
                *("annotations", "annotations_trainval2017", 252_907_541),
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
            (
                *("zips", "val2017", 815_585_330),
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ),
            (
                *("zips", "train2017", 19_336_861_798),
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
        )
    ),
    by_hand="the images and annotations of 2014, for train2014 and val2014",
)

# Ids of labels.txt that no image has.
_NEVER_ANNOTATED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
_STUFF = tuple(i for i in range(1, 183) if i not in _NEVER_ANNOTATED)


def _coco_stuff(root: Path, split: str) -> Files:
    """images/PART/*.jpg and annotations/PART/*.png, PART train2017 or val2017."""
    found = Files([], [])
    for part in _FILES.get(split, ()):
        if part.endswith("2014"):
            return NOTHING
        images = sorted(_images(root, part).glob("*.jpg"))
        found.images.extend(images)
        masks = existing(root / "annotations" / part)
        found.masks.extend(masks / f"{path.stem}.png" for path in images)
    return found


def _stuff_names(root: Path) -> tuple[str, ...]:
    """Of labels.txt, which also has those that are never annotated."""
    path = existing(root / "labels.txt")
    names = read_numbered(path)
    if missing := [i for i in _STUFF if i not in names]:
        raise DataError(f"{path}: has no name of id {missing[0]}; is it COCO-Stuff's labels.txt?")
    return tuple(names[i] for i in _STUFF)


COCO_STUFF = Dataset(
    names=(),
    splits={"train": 118287, "val": 5000, "trainval": 123287},
    find=_coco_stuff,
    where=(
        "train2017.zip and val2017.zip (cocodataset.org), extracted in data.root/images, "
        "stuffthingmaps_trainval2017.zip (github.com/nightrome/cocostuff), extracted in "
        "data.root/annotations, and labels.txt from there in data.root"
    ),
    raw_ids=tuple(i - 1 for i in _STUFF),  # 255 is unlabelled
    read_names=_stuff_names,
)
