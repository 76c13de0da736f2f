"""The published datasets: what their ids mean, how many images they have, where their files lie.

Ids of the masks as stored ("raw") go through a dataset's own label map, once, as they are read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_jax.data import files
from deeplab_jax.data.labels import VOC_CLASSES, table, voc_palette
from deeplab_jax.errors import DataError, did_you_mean


class Files(NamedTuple):
    """Of a split: paths in the same order, and whether the masks hold raw ids."""

    images: list[Path]
    masks: list[Path]
    raw: bool = True


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
    """

    names: tuple[str, ...]
    splits: Mapping[str, int]
    find: Callable[[Path, str], Files]
    where: str
    palette: tuple[tuple[int, int, int], ...] | None = None
    raw_ids: tuple[int, ...] | None = None
    read_names: Callable[[Path], tuple[str, ...]] | None = None


def source(
    name: str, root: str | Path, split: str, num_classes: int, ignore_label: int
) -> files.Pairs:
    """A split of a published dataset, as random access.

    Raises:
      DataError: for a split there is not, or files that are not there.
    """
    images, masks, raw = find(name, root, split)
    label_map = label_map_of(name, ignore_label) if raw else None
    return files.paired(images, masks, num_classes, ignore_label, label_map)


def find(name: str, root: str | Path, split: str) -> Files:
    """The files of a split, at least one.

    Raises:
      DataError: for a split there is not, or a folder without it, saying what to get.
    """
    dataset = DATASETS[name]
    if not str(root) or not Path(root).expanduser().is_dir():
        raise DataError(f"data.root={root or '(not set)'}: no such folder; get {dataset.where}")
    found = dataset.find(Path(root).expanduser(), split)
    if not found.images:
        raise DataError(
            f"{root}: no images of {name}'s split {split!r}; its splits are "
            f"{', '.join(dataset.splits)}{did_you_mean(split, dataset.splits)}; get {dataset.where}"
        )
    return found


def label_map_of(name: str, ignore_label: int) -> np.ndarray | None:
    """The `table` of a dataset's raw ids; None where ids are as stored."""
    raw_ids = DATASETS[name].raw_ids
    if raw_ids is None:
        return None
    return table({raw: label for label, raw in enumerate(raw_ids)}, ignore_label, void=True)


def remark(name: str, split: str, count: int) -> str:
    """A sentence where a split is not the official release's; else ""."""
    official = DATASETS[name].splits.get(split) if name in DATASETS else None
    if official in (None, count):
        return ""
    return f"{name} {split}: {count} images; the official release has {official}"


def names_of(name: str, root: str | Path) -> tuple[str, ...]:
    """Class names of a published dataset, by id."""
    dataset = DATASETS[name]
    return dataset.names or dataset.read_names(Path(root).expanduser())


def palette_of(name: str) -> np.ndarray:
    """[256, 3] uint8 RGB by id; what is no class is black, void white."""
    colours = DATASETS[name].palette
    if colours is None:
        return voc_palette()
    out = np.zeros((256, 3), np.uint8)
    out[: len(colours)] = colours
    out[255] = 255
    return out


# --- layouts -----------------------------------------------------------------------------------


def _voc(root: Path, split: str) -> Files:
    """JPEGImages, SegmentationClassAug (or SegmentationClass), a list a split in `lists/` or
    `ImageSets/Segmentation/`."""
    masks = root / "SegmentationClassAug"
    if not masks.is_dir():
        masks = root / "SegmentationClass"
    lists = root / "lists"
    if not lists.is_dir():
        lists = root / "ImageSets" / "Segmentation"
    for folder in (root / "JPEGImages", masks, lists):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; data.name=voc expects VOC's own layout")
    names = files.read_list(lists, split)
    return Files(
        [root / "JPEGImages" / f"{name}.jpg" for name in names],
        [masks / f"{name}.png" for name in names],
    )


def _camvid(root: Path, split: str) -> Files:
    """SPLIT/ and SPLITannot/, PNG or JPEG images; "trainval" is both."""
    parts = {"trainval": ("train", "val")}.get(split, (split,))
    images = [
        path
        for part in parts
        for path in sorted((root / part).glob("*"))
        if path.suffix.lower() in files.IMAGE_SUFFIXES
    ]
    masks = [p.parent.with_name(f"{p.parent.name}annot") / f"{p.stem}.png" for p in images]
    return Files(images, masks)


def _cityscapes(root: Path, split: str) -> Files:
    """leftImg8bit/SPLIT/CITY/ and gtFine/ or gtCoarse/, masks of labelIds or else of trainIds."""
    parts = _CITYSCAPES.get(split, ())
    images, masks = [], []
    for annotation, part in parts:
        for path in sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.png")):
            stem = path.name.removesuffix("_leftImg8bit.png")
            images.append(path)
            masks.append(root / annotation / part / path.parent.name / f"{stem}_{annotation}")

    def of(kind):
        return [mask.with_name(f"{mask.name}_{kind}.png") for mask in masks]

    raw = any(mask.is_file() for mask in of("labelIds"))
    return Files(images, of("labelIds" if raw else "labelTrainIds"), raw)


_CITYSCAPES = {
    "train": (("gtFine", "train"),),
    "val": (("gtFine", "val"),),
    "trainval": (("gtFine", "train"), ("gtFine", "val")),
    "test": (("gtFine", "test"),),
    "train_coarse": (("gtCoarse", "train"), ("gtCoarse", "train_extra")),
    "trainval_coarse": (
        *(("gtCoarse", "train"), ("gtCoarse", "train_extra")),
        ("gtCoarse", "val"),
    ),
}


def _ade20k(root: Path, split: str) -> Files:
    """images/training/, annotations/training/, and validation/ of both."""
    folder = {"train": "training", "val": "validation"}.get(split, split)
    images = sorted((root / "images" / folder).glob("*.jpg"))
    return Files(images, [root / "annotations" / folder / f"{path.stem}.png" for path in images])


def _ade20k_names(root: Path) -> tuple[str, ...]:
    """Of objectInfo150.txt, whose last column they are; of several the first."""
    _, *lines = files.read_lines(root / "objectInfo150.txt")
    return tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines)


DATASETS = {
    "voc": Dataset(
        names=tuple(VOC_CLASSES),
        splits={"train": 1464, "train_aug": 10582, "trainval": 2913, "val": 1449},
        find=_voc,
        where=(
            "VOCtrainval_11-May-2012.tar (host.robots.ox.ac.uk/pascal/VOC/voc2012), for train_aug "
            "with SegmentationClassAug (the SBD masks); data.root is its VOC2012 folder"
        ),
    ),
    "camvid": Dataset(
        names=tuple(
            "sky building pole road pavement tree signsymbol fence car pedestrian bicyclist".split()
        ),
        splits={"train": 367, "val": 101, "test": 233, "trainval": 468},
        find=_camvid,
        where=(
            "CamVid as SegNet's tutorial has it; data.root holds train, trainannot, val, valannot, "
            "test and testannot"
        ),
        palette=(
            *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222)),
            *((128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0)),
            (0, 128, 192),
        ),
        raw_ids=tuple(range(11)),  # 11 is void
    ),
    "cityscapes": Dataset(
        names=(
            *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"),
            *("traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck"),
            *("bus", "train", "motorcycle", "bicycle"),
        ),
        splits={
            "train": 2975,
            "val": 500,
            "trainval": 3475,
            "test": 1525,
            "train_coarse": 22973,
            "trainval_coarse": 23473,
        },
        find=_cityscapes,
        where=(
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (cityscapes-dataset.com), "
            "for coarse labels leftImg8bit_trainextra.zip and gtCoarse.zip; data.root holds "
            "leftImg8bit, gtFine and gtCoarse"
        ),
        palette=(
            *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
            *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
            *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70)),
            *((0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
        ),
        raw_ids=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
    ),
    "ade20k": Dataset(
        names=(),
        splits={"train": 20210, "val": 2000},
        find=_ade20k,
        where=(
            "ADEChallengeData2016.zip (sceneparsing.csail.mit.edu); data.root is its folder with "
            "images, annotations and objectInfo150.txt"
        ),
        raw_ids=tuple(range(1, 151)),  # 0 is other
        read_names=_ade20k_names,
    ),
}
