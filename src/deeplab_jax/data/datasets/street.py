"""Scenes from cars: CamVid and Cityscapes."""

from pathlib import Path

from deeplab_jax.data import image_files
from deeplab_jax.data.datasets.dataset import Dataset, Files


def _camvid(root: Path, split: str) -> Files:
    """SPLIT/ and SPLITannot/, PNG or JPEG images; "trainval" is both."""
    parts = {"trainval": ("train", "val")}.get(split, (split,))
    images = [
        path
        for part in parts
        for path in sorted((root / part).glob("*"))
        if path.suffix.lower() in image_files.IMAGE_SUFFIXES
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


CAMVID = Dataset(
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
)
CITYSCAPES = Dataset(
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
)
