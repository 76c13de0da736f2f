"""From a source to batches, with grain: same order and augmentation for the same seed, anywhere."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from deeplab_jax.data import coco_json, datasets, files, folder, shapes
from deeplab_jax.data.classification import (
    CentralCrops,
    ImageFolder,
    RandomResizedCrop,
    class_folders,
)
from deeplab_jax.data.datasets import extras
from deeplab_jax.data.labels import IGNORE_LABEL, SYNTHETIC_CLASSES, Labels, labels
from deeplab_jax.data.loader import Loader
from deeplab_jax.data.skipping import Skipping
from deeplab_jax.data.synthetic import Synthetic
from deeplab_jax.data.transforms import Augment, ResizeToRange, normalization, pad_into
from deeplab_jax.errors import ConfigError, did_you_mean

CLASSIFICATION = ("shapes", "image_folder", "imagenet")  # a class an image
OWN = ("folder", "coco_json")  # label maps of a user's own
DATASETS = ("synthetic", *OWN, *datasets.DATASETS, *CLASSIFICATION)
ON_ERROR = ("error", "skip")


def source(data: Mapping[str, Any], split: str, num_classes: int):
    """The random-access source that `config.data` names, one split of it.

    Raises:
      ConfigError: for an unknown dataset name.
      DataError: for files that are not there.
    """
    name = known_name(data["name"])
    if name in ("synthetic", "shapes"):
        options = dict(data["synthetic"])
        if name == "shapes":  # these have neither depth nor geometry
            options = {key: options[key] for key in ("seed", "version")}
        try:
            made = {"synthetic": Synthetic, "shapes": shapes.Shapes}[name](split, **options)
        except ValueError as error:
            raise ConfigError(f"data.synthetic: {error}") from error
        if name == "shapes":
            _check_classes(shapes.CLASSES, num_classes, "the embedded shapes")
        return _Cached(made) if data["cache"] else made
    found = _of_files(data, name, split, num_classes)
    return Skipping(found) if data["on_error"] == "skip" else found


def _of_files(data: Mapping[str, Any], name: str, split: str, num_classes: int):
    if name == "imagenet":
        from deeplab_jax.data.imagenet import ImageNet  # TFDS takes a second to import

        images = ImageNet(data["root"], split)
        _check_classes(images.names, num_classes, data["root"])
        return images
    if name == "image_folder":
        images = ImageFolder(data["root"], split)
        _check_classes(images.names, num_classes, images.root / "train")
        return images
    if name in OWN:
        read = {"folder": folder.source, "coco_json": coco_json.source}[name]
        return read(data["root"], split, class_labels(data, num_classes))
    read = datasets.source
    if data["records"]:
        from deeplab_jax.data import records  # TFDS takes a second to import

        read = records.source
    channels, ignore_label = data["channels"], data["ignore_label"]
    return read(name, data["root"], split, num_classes, ignore_label, channels=channels)


def _check_classes(names, num_classes: int, where) -> None:
    if len(names) != num_classes:
        raise ConfigError(
            f"{where} has {len(names)} classes: set --config.model.num_classes={len(names)}"
        )


def class_labels(data: Mapping[str, Any], num_classes: int | None) -> Labels:
    """Names and colours of the dataset's classes, and what its masks have stored for them.

    Raises:
      ConfigError: for another number of classes than a user's own data have.
      DataError: for files of names that cannot be read.
    """
    name, ignore_label = known_name(data["name"]), data["ignore_label"]
    if name in OWN:
        return _own_labels(data, num_classes)
    if name in datasets.DATASETS:
        names = datasets.names_of(name, data["root"])
        found = labels(names, num_classes, datasets.palette_of(name), ignore_label)
        raw_ids = datasets.DATASETS[name].raw_ids
        if raw_ids is None:
            return found
        classes = {raw: label for label, raw in enumerate(raw_ids[: len(found.names)])}
        return found.mapped(classes, others_void=True)
    names = {"synthetic": SYNTHETIC_CLASSES, "shapes": shapes.CLASSES}.get(name, ())
    if name == "image_folder":
        names = class_folders(data["root"])
    if name == "imagenet":
        from deeplab_jax.data import imagenet

        names = imagenet.read_names(data["root"])
    return labels(names, num_classes, ignore_label=ignore_label)


def usual_labels(num_classes: int) -> Labels:
    """Names for weights that have none: by their number PASCAL VOC's or Cityscapes'."""
    name = {21: "voc", 19: "cityscapes"}.get(num_classes)
    if name is None:
        return labels((), num_classes)
    return class_labels({"name": name, "root": "", "ignore_label": IGNORE_LABEL}, num_classes)


def channels(data: Mapping[str, Any]) -> int:
    """Of the images of `config.data`."""
    if data["name"] == "synthetic":
        return 4 if data["synthetic"]["depth"] else 3
    if data["name"] not in datasets.DATASETS:
        return 3
    kinds = datasets.extras_of(data["name"], data["channels"])
    return 3 + sum(extras.KINDS[k].channels for k in kinds if not k.startswith("label"))


def named_labels(data: Mapping[str, Any]) -> Labels | None:
    """What a user's own data themselves say of their classes; None if they do not.

    Raises:
      DataError: as `class_labels`.
    """
    if data["name"] == "coco_json":
        names = coco_json.names_of(data["root"], data["train_split"])
        return labels(names, ignore_label=data["ignore_label"])
    return folder.read_labels(data["root"], data["ignore_label"])


def _own_labels(data: Mapping[str, Any], num_classes: int | None) -> Labels:
    found, root = named_labels(data), data["root"]
    if found is None and num_classes is None and data["label_map"]:
        num_classes = 1 + max(set(data["label_map"].values()) - {data["ignore_label"]}, default=0)
    if found is None and num_classes is None:
        raise ConfigError(
            f"model.num_classes is not set, and {root} has no classes.json: --mode=check_data "
            "looks at the masks and proposes one, or set --config.model.num_classes=N"
        )
    if found is None:
        found = labels((), num_classes, ignore_label=data["ignore_label"])
    elif num_classes not in (None, len(found.names)):
        raise ConfigError(
            f"{root} names {len(found.names)} classes, model.num_classes is {num_classes}: set "
            f"--config.model.num_classes={len(found.names)}"
        )
    if data["label_map"] is None:
        return found
    if found.label_map is not None:
        raise ConfigError(
            f"data.label_map and {root}/classes.json both say what the masks' ids mean; keep one"
        )
    return found.mapped(data["label_map"])


def known_name(name: str) -> str:
    """`name`, if it is one that `data.name` takes; else ConfigError."""
    if name not in DATASETS:
        raise ConfigError(
            f"data.name={name!r} is not one of {', '.join(DATASETS)}" + did_you_mean(name, DATASETS)
        )
    return name


class _Cached:
    """Keeps every example of a source once it was made; for sources that fit in memory."""

    def __init__(self, source):
        self.source, self.examples = source, {}

    def fingerprint(self) -> str:
        return files.fingerprint(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if index not in self.examples:
            self.examples[index] = self.source[index]
        return self.examples[index]


class Share:
    """One process's part of a source: every `count`-th example from the `index`-th on.

    Each has its place in the whole as "index".
    """

    def __init__(self, source, index: int, count: int):
        self.source, self.places = source, range(index, len(source), count)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict:
        place = self.places[int(index)]
        return self.source[place] | {"index": place}


def train_iterator(
    source,
    data: Mapping[str, Any],
    seed: int,
    batch_size: int,
    *,
    process: int = 0,
    processes: int = 1,
) -> Loader:
    """Endless batches {"image" [b, h, w, C] float32 0..255, "label" [b, h, w] int32}.

    Each epoch has an order of its own; every example is augmented from a random generator of
    its place in the stream. `get_state()` and `set_state()` save and restore the position.
    Of images with a class each "label" is [b, 1, 1]. Where `data.augment_on` is "device" the
    batches are those of `Augment.windows`.

    Of each batch of B = `batch_size` this process has the `process`-th block of b = B / `processes`
    examples. So the batches, and the position, are the same for any number of processes.
    """
    size = batch_size // processes
    common = {"crop_size": tuple(data["crop_size"]), "flip": data["flip"]}
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if data["name"] in CLASSIFICATION:
        keys = ("min_crop_area", "max_aspect_ratio", "color_jitter")
        augment = RandomResizedCrop(**common, **{key: data[key] for key in keys})
        batches = examples.random_map(augment).batch(size, drop_remainder=True)
    else:
        channels = source[0]["image"].shape[-1]
        augment = Augment(
            min_scale_factor=data["min_scale_factor"],
            max_scale_factor=data["max_scale_factor"],
            scale_factor_step_size=data["scale_factor_step_size"],
            pad_value=tuple(normalization(data["normalization"], channels)[0]),
            ignore_label=data["ignore_label"],
            **common,
        )
        if data["min_resize_value"] is not None:
            sizes = ("min_resize_value", "max_resize_value", "resize_factor")
            examples = examples.map(ResizeToRange(*(data[key] for key in sizes)))
        finish = augment.windows if data["augment_on"] == "device" else augment.batch
        batches = examples.random_map(augment.place).batch(
            size, drop_remainder=True, batch_fn=finish
        )
    return Loader(batches[process::processes], data["num_threads"], data["num_workers"])


def eval_batches(source, crop_size, pad_value, batch_size: int):
    """Yields (padded images [B, H, W, C] float32, examples): whole images, in order, never scaled.

    Images are padded at the bottom and right, a side to that of `crop_size` if it fits, else to the
    next size on a grid of 64 px, so that a set of odd sizes needs few compilations. A batch holds
    images of one padded size; where there are too few, the last is repeated (and has no example).

    Args:
      source: random access; gives {"image", ...}.
      crop_size: (height, width), or None for the grid alone.
      pad_value: [C] image value of the padding, the mean pixel.
      batch_size: images a batch.
    """
    dataset = grain.MapDataset.source(source)
    stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
    # What stands in for an unreadable image is scored once.
    examples = (example for example in stream if "replaced" not in example)

    def size_of(example):
        return padded_size(example["image"].shape[:2], crop_size)

    for group in grouped(examples, size_of, batch_size):
        images = [example["image"] for example in group]
        yield padded_batch(images, size_of(group[0]), pad_value, batch_size), group


def grouped(
    items: Iterable[Any],
    key: Callable[[Any], Any],
    size: int,
    most: float = math.inf,
) -> Iterator[list[Any]]:
    """Yields lists of up to `size` items of one key, in the items' order but for those that wait.

    Args:
      items: read as far as is needed.
      key: of an item, hashable; an item of the key None is a list of its own.
      size: items that make a list.
      most: items that wait at a time for others of their key; then the longest list goes as it is.
    """
    waiting: dict[Any, list[Any]] = {}
    for item in items:
        if (own := key(item)) is None:
            yield [item]
            continue
        waiting.setdefault(own, []).append(item)
        if len(waiting[own]) == size:
            yield waiting.pop(own)
        elif sum(map(len, waiting.values())) >= most:
            yield waiting.pop(max(waiting, key=lambda k: len(waiting[k])))
    yield from waiting.values()


def central_batches(source, crop_size, fraction: float, batch_size: int):
    """As `eval_batches`, of the middle of each image: [B, *crop_size, C]."""
    return eval_batches(CentralCrops(source, crop_size, fraction), crop_size, 0.0, batch_size)


def padded_batch(images: Sequence[np.ndarray], size, pad_value, batch_size: int) -> np.ndarray:
    """Images [h, w, C] → [B, H, W, C] float32, padded at the bottom and right to `size`.

    Where there are fewer than `batch_size`, the last is repeated: one program serves them all.
    """
    batch = np.empty((batch_size, *size, images[0].shape[-1]), np.float32)
    for i, padded in enumerate(batch):
        pad_into(padded, images[min(i, len(images) - 1)], pad_value)
    return batch


def padded_size(size: tuple[int, int], crop_size: tuple[int, int] | None) -> tuple[int, int]:
    """The size that an image of `size` is padded to: a side that fits in `crop_size` to that, as
    the official code does, a longer one to 64 k + 1."""
    # 64 k + 1 is on the grid of every output stride: corners stay aligned with align_corners.
    longer = tuple(-(-(n - 1) // 64) * 64 + 1 for n in size)
    if crop_size is None:
        return longer
    return tuple(c if n <= c else grid for n, c, grid in zip(size, crop_size, longer))
