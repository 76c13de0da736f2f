"""Published datasets as a few large ArrayRecord files, made by TFDS without TensorFlow.

For file systems that suffer from many small files. Files go in as they are, encoded; masks keep
their raw ids. Import it where it is needed: importing TFDS takes a second.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from deeplab_jax.data import datasets, files, image_files
from deeplab_jax.data.datasets import extras
from deeplab_jax.errors import DataError


@dataclasses.dataclass
class SplitConfig(tfds.core.BuilderConfig):
    """Which split of which dataset, and which of its channels."""

    dataset: str = ""
    split: str = ""
    channels: str = "rgb"


def _name(dataset: str, split: str, channels: str) -> str:
    return f"{dataset}_{split}" if channels == "rgb" else f"{dataset}_{split}_{channels}"


class DeeplabRecords(tfds.core.GeneratorBasedBuilder):
    """One split of a dataset of `datasets.DATASETS`, in its files' order.

    It is called NAME_SPLIT, or NAME_SPLIT_CHANNELS where it has more than RGB.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        SplitConfig(name=_name(name, split, channels), dataset=name, split=split, channels=channels)
        for name, dataset in datasets.DATASETS.items()
        for split in dataset.splits
        for channels in datasets.channels_of(name)
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = "What `datasets.DATASETS[NAME].where` says, extracted."

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.Image(shape=(None, None, 1)),
            "name": tfds.features.Text(),
            "raw": tfds.features.Scalar(np.bool_),
        }
        which = self.builder_config
        for key in datasets.extras_of(which.dataset, which.channels):
            features[key] = tfds.features.Image(shape=(None, None, extras.KINDS[key].channels))
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        which = self.builder_config
        found = datasets.find(which.dataset, dl_manager.manual_dir, which.split, which.channels)
        return {"whole": self._examples(found)}

    def _examples(self, found: datasets.Files):
        for number, (image, mask) in enumerate(zip(found.images, found.masks)):
            example = {"image": image, "label": mask, "name": image.stem, "raw": found.raw}
            yield number, example | {key: paths[number] for key, paths in found.extras.items()}

    def _generate_examples(self, examples):
        return examples


@dataclasses.dataclass(frozen=True)
class Records:
    """Random-access source of a prepared split: examples as of `files.Pairs`.

    Attributes:
      data_source: TFDS's, of encoded images.
      num_classes, ignore_label, label_map: as of `files.Pairs`; the map is for raw ids.
      extras: {key of `extras.KINDS`: id of each stored id, None of channels}.
    """

    data_source: Any
    num_classes: int
    ignore_label: int
    label_map: np.ndarray | None
    extras: Mapping[str, np.ndarray | None]

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict:
        example = self.data_source[int(index)]
        name = example["name"].decode()
        image, mask = image_files.read_image(name, example["image"]), self._label(example, name)
        files.check_sizes(image, mask, name, name)
        read = {
            key: extras.read(key, name, table, example[key]) for key, table in self.extras.items()
        }
        return extras.joined({"image": image, "label": mask, "name": name}, read, name)

    def label(self, index: int) -> np.ndarray:
        """The mask alone, [H, W] integer; checks its ids."""
        example = self.data_source[int(index)]
        return self._label(example, example["name"].decode())

    def _label(self, example, name: str) -> np.ndarray:
        mask = image_files.read_mask(name, example["label"])
        label_map = self.label_map if example["raw"] else None
        return files.labelled(mask, self.num_classes, self.ignore_label, label_map, name)

    def fingerprint(self) -> str:
        """Which split, and how much of it."""
        return f"{self.data_source.dataset_info.full_name} {len(self)} {self.label_map}"


def source(
    name: str,
    root: str | Path,
    split: str,
    num_classes: int,
    ignore_label: int,
    channels: str = "rgb",
) -> Records:
    """A split of a published dataset; prepares it in `root` the first time.

    Raises:
      DataError, ConfigError: as `datasets.source`.
    """
    root = Path(root).expanduser()
    splits = datasets.DATASETS[name].splits
    if split not in splits:
        datasets.find(name, root, split)  # says what there is, if there is nothing
        raise DataError(
            f"data.records packs the published splits of {name} ({', '.join(splits)}), not "
            f"{split!r}: read it with data.records=False"
        )
    builder = DeeplabRecords(
        config=_name(name, split, channels), data_dir=root / "records", file_format="array_record"
    )
    if not builder.data_path.exists():
        datasets.source(name, root, split, num_classes, ignore_label, channels)  # all are there
        settings = tfds.download.DownloadConfig(manual_dir=root)
        builder.download_and_prepare(download_config=settings)
    keys = datasets.extras_of(name, channels)
    tables = datasets.extra_tables(name, ignore_label)
    examples = builder.as_data_source(
        split="whole",
        decoders={key: tfds.decode.SkipDecoding() for key in ("image", "label", *keys)},
    )
    return Records(
        examples,
        num_classes,
        ignore_label,
        datasets.label_map_of(name, ignore_label),
        {key: tables.get(key) for key in keys},
    )
