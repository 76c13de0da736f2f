"""Scenes of every kind: ADE20K, and SIFT Flow with its geometry."""

from pathlib import Path

import numpy as np

from deeplab_jax.data import files
from deeplab_jax.data.datasets import prepared
from deeplab_jax.data.datasets.dataset import NOTHING, Dataset, Files, existing


def _ade20k(root: Path, split: str) -> Files:
    """images/training/, annotations/training/, and validation/ of both."""
    folder = {"train": "training", "val": "validation"}.get(split, split)
    images = sorted((root / "images" / folder).glob("*.jpg"))
    return Files(images, [root / "annotations" / folder / f"{path.stem}.png" for path in images])


def _ade20k_names(root: Path) -> tuple[str, ...]:
    """Of objectInfo150.txt, whose last column they are; of several the first."""
    _, *lines = files.read_lines(root / "objectInfo150.txt")
    return tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines)


ADE20K = Dataset(
    names=(),
    splits={"train": 20210, "val": 2000},
    find=_ade20k,
    where=(
        "ADEChallengeData2016.zip (sceneparsing.csail.mit.edu); data.root is its folder with "
        "images, annotations and objectInfo150.txt"
    ),
    raw_ids=tuple(range(1, 151)),  # 0 is other
    read_names=_ade20k_names,
)

# The one folder of Images, SemanticLabels and GeoLabels.
_OUTDOOR = "spatial_envelope_256x256_static_8outdoorcategories"


def _sift_flow(root: Path, split: str) -> Files:
    """Images/, SemanticLabels/ and GeoLabels/, each of one folder; TestSet1.txt lists the test.

    Two images (highway_bost181, street_urb506) lack annotations in the release: those without a
    file of labels are left out.
    """
    if split not in ("train", "test"):
        return NOTHING
    lines = files.read_lines(existing(root / "TestSet1.txt"))
    test = {line.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".jpg") for line in lines}
    labels = root / "SemanticLabels" / _OUTDOOR
    images = [
        path
        for path in sorted(existing(root / "Images" / _OUTDOOR).glob("*.jpg"))
        if (path.stem in test) == (split == "test") and (labels / f"{path.stem}.mat").is_file()
    ]

    def prepare(kind: str, count: int) -> list[Path]:
        place = prepared.folder(root, "sift_flow") / kind
        targets = [place / f"{path.stem}.png" for path in images]
        table = np.arange(count + 1)

        def make(index: int) -> np.ndarray:
            path = root / kind / _OUTDOOR / f"{images[index].stem}.mat"
            ids = prepared.read_mat_ids(path, "S")
            return prepared.translated(np.where(ids == -1, 0, ids), table, path)  # -1: void, too

        prepared.write(targets, make, f"masks of {kind}")
        return targets

    geometry = prepare("GeoLabels", 3)
    return Files(images, prepare("SemanticLabels", 33), extras={"label_geometry": geometry})


SIFT_FLOW = Dataset(
    names=tuple(
        "awning balcony bird boat bridge building bus car cow crosswalk desert door fence field "
        "grass moon mountain person plant pole river road rock sand sea sidewalk sign sky "
        "staircase streetlight sun tree window".split()
    ),
    splits={"train": 2488, "test": 200},
    find=_sift_flow,
    where=(
        "SiftFlowDataset.zip (the SuperParsing page of J. Tighe and S. Lazebnik); data.root is its "
        "folder with Images, SemanticLabels, GeoLabels and TestSet1.txt"
    ),
    raw_ids=tuple(range(1, 34)),  # 0 is unlabelled
    label_maps={"label_geometry": (1, 2, 3)},  # sky, horizontal, vertical
)
