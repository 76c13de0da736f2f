"""The published datasets: what their ids mean, how many images they have, where their files lie.

Ids of the masks as stored ("raw") go through a dataset's own label map, once, as they are read.
Masks that are no image files are written as such first, see `prepared`.
"""

from pathlib import Path

import numpy as np

from deeplab_jax.data import files
from deeplab_jax.data.datasets import coco, nyudv2, pascal, scenes, street
from deeplab_jax.data.datasets.dataset import Files
from deeplab_jax.data.datasets.extras import WithExtras
from deeplab_jax.data.labels import table, voc_palette
from deeplab_jax.errors import ConfigError, DataError, did_you_mean

DATASETS = {
    "voc": pascal.VOC,
    "pascal_context": pascal.CONTEXT,
    "pascal_context_59": pascal.CONTEXT_59,
    "person_part": pascal.PERSON_PART,
    "camvid": street.CAMVID,
    "cityscapes": street.CITYSCAPES,
    "ade20k": scenes.ADE20K,
    "sift_flow": scenes.SIFT_FLOW,
    "coco": coco.COCO,
    "coco_stuff": coco.COCO_STUFF,
    "nyudv2": nyudv2.NYUDV2,
}


def source(
    name: str,
    root: str | Path,
    split: str,
    num_classes: int,
    ignore_label: int,
    channels: str = "rgb",
) -> files.Pairs | WithExtras:
    """A split of a published dataset, as random access.

    Raises:
      DataError: for a split there is not, or files that are not there.
      ConfigError: for channels that the dataset has not.
    """
    images, masks, raw, extras = find(name, root, split, channels)
    label_map = label_map_of(name, ignore_label) if raw else None
    pairs = files.paired(images, masks, num_classes, ignore_label, label_map)
    return WithExtras(pairs, extras, extra_tables(name, ignore_label)) if extras else pairs


def find(name: str, root: str | Path, split: str, channels: str = "rgb") -> Files:
    """The files of a split, at least one.

    Raises:
      DataError: for a split there is not, or a folder without it, saying what to get.
      ConfigError: for channels that the dataset has not.
    """
    dataset = DATASETS[name]
    check_channels(name, channels)
    if not str(root) or not Path(root).expanduser().is_dir():
        raise DataError(f"data.root={root or '(not set)'}: no such folder; get {dataset.where}")
    root = Path(root).expanduser()
    try:
        found = dataset.find(root, split)
        if found.images and channels != "rgb":
            found = dataset.channels[channels][1](root, found)
    except FileNotFoundError as error:
        raise _missing(error, name) from error
    if not found.images:
        raise DataError(
            f"{root}: no images of {name}'s split {split!r}; its splits are "
            f"{', '.join(dataset.splits)}{did_you_mean(split, dataset.splits)}; get {dataset.where}"
        )
    return found


def _missing(error: FileNotFoundError, name: str) -> DataError:
    return DataError(f"{error.filename}: no such file or folder; get {DATASETS[name].where}")


def channels_of(name: str) -> tuple[str, ...]:
    """The values of data.channels for a dataset, published or not."""
    return ("rgb", *(DATASETS[name].channels if name in DATASETS else ()))


def check_channels(name: str, channels: str) -> None:
    """Raises ConfigError for channels that a dataset, published or not, has not."""
    known = channels_of(name)
    if channels not in known:
        raise ConfigError(
            f"data.channels={channels!r}: {name} has {', '.join(known)}"
            + did_you_mean(channels, known)
        )


def extras_of(name: str, channels: str) -> tuple[str, ...]:
    """Keys of the `Files.extras` of a dataset with these channels."""
    dataset = DATASETS[name]
    return (*dataset.label_maps, *(dataset.channels[channels][0] if channels != "rgb" else ()))


def label_map_of(name: str, ignore_label: int) -> np.ndarray | None:
    """The `table` of a dataset's raw ids; None where ids are as stored."""
    raw_ids = DATASETS[name].raw_ids
    return None if raw_ids is None else _table_of(raw_ids, ignore_label)


def extra_tables(name: str, ignore_label: int) -> dict[str, np.ndarray]:
    """{"label_NAME": the `table` of its raw ids} of a dataset's further label maps."""
    maps = DATASETS[name].label_maps
    return {key: _table_of(raw_ids, ignore_label) for key, raw_ids in maps.items()}


def _table_of(raw_ids: tuple[int, ...], ignore_label: int) -> np.ndarray:
    return table({raw: label for label, raw in enumerate(raw_ids)}, ignore_label, void=True)


def remark(name: str, split: str, count: int) -> str:
    """A sentence where a split is not the official release's; else ""."""
    official = DATASETS[name].splits.get(split) if name in DATASETS else None
    if official in (None, count):
        return ""
    if chosen := DATASETS[name].chosen:
        return f"{name} {split}: {count} of the release's {official} images, {chosen}"
    return f"{name} {split}: {count} images; the official release has {official}"


def names_of(name: str, root: str | Path) -> tuple[str, ...]:
    """Class names of a published dataset, by id.

    Raises:
      DataError: where the file that tells them is not there.
    """
    dataset = DATASETS[name]
    try:
        return dataset.names or dataset.read_names(Path(root).expanduser())
    except FileNotFoundError as error:
        raise _missing(error, name) from error


def palette_of(name: str) -> np.ndarray:
    """[256, 3] uint8 RGB by id; what is no class is black, void white."""
    colours = DATASETS[name].palette
    if colours is None:
        return voc_palette()
    out = np.zeros((256, 3), np.uint8)
    out[: len(colours)] = colours
    out[255] = 255
    return out
