"""ImageNet-2012 by TFDS, prepared without TensorFlow from the official archives.

Import it where it is needed: importing TFDS takes a second.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from deeplab_jax.data import files, image_files
from deeplab_jax.errors import DataError, first_few

TRAIN, VAL, DEVKIT = (
    "ILSVRC2012_img_train.tar",
    "ILSVRC2012_img_val.tar",
    "ILSVRC2012_devkit_t12.tar.gz",
)
SPLITS = {"train": 1_281_167, "val": 50_000}  # images
NAMES = "wnids.txt"  # beside the prepared data: the classes' WordNet ids
WHERE = f"{TRAIN}, {VAL} and {DEVKIT} from image-net.org (Download, ILSVRC 2012)"


class DeeplabImagenet2012(tfds.core.GeneratorBasedBuilder):
    """Encoded images and their classes, numbered by WordNet id as everybody does."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {WHERE} into one folder."

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.Scalar(np.int32),
            "name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        folder = Path(dl_manager.manual_dir)
        return {
            "train": self._train(folder / TRAIN),
            "val": self._val(folder / VAL, folder / DEVKIT),
        }

    def _generate_examples(self, examples):
        return examples

    def _train(self, path: Path):
        with tarfile.open(path) as archive:
            members = sorted(archive.getmembers(), key=lambda member: member.name)
            for label, member in enumerate(members):  # one archive a class, n01440764.tar
                with tarfile.open(fileobj=archive.extractfile(member)) as images:
                    for image in images:
                        name = Path(image.name).stem
                        yield name, _example(images.extractfile(image).read(), label, name)

    def _val(self, path: Path, devkit: Path):
        labels = validation_labels(devkit)
        with tarfile.open(path) as archive:
            for image in archive:
                if not image.isfile():
                    continue
                name = Path(image.name).stem  # ILSVRC2012_val_00000001
                label = labels[int(name.rsplit("_", 1)[1]) - 1]
                yield name, _example(archive.extractfile(image).read(), label, name)


def _example(encoded: bytes, label: int, name: str) -> dict:
    # As it is: some of the archive's images are PNG or CMYK, which `image_files.read_image` knows.
    return {"image": io.BytesIO(encoded), "label": label, "name": name}


def validation_labels(devkit: str | Path) -> list[int]:
    """Class of each validation image, in order, numbered by WordNet id from 0.

    The devkit has its own numbers, ILSVRC2012_ID; meta.mat says which WordNet id each is.
    """
    with tarfile.open(devkit) as archive:
        members = {Path(member.name).name: member for member in archive}
        meta = archive.extractfile(members["meta.mat"]).read()
        truth = archive.extractfile(members["ILSVRC2012_validation_ground_truth.txt"]).read()
    synsets = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    leaves = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if not s["num_children"]}
    order = {wnid: i for i, wnid in enumerate(sorted(leaves.values()))}
    return [order[leaves[int(line)]] for line in truth.split()]


def prepared(root: str | Path) -> DeeplabImagenet2012:
    """The builder of the data in `root`; prepares them the first time.

    Raises:
      DataError: if neither the prepared data nor the archives are there, or these are damaged.
    """
    folder = Path(root).expanduser()
    builder = DeeplabImagenet2012(data_dir=folder, file_format="array_record")
    if builder.data_path.exists():
        return builder
    missing = [name for name in (TRAIN, VAL, DEVKIT) if not (folder / name).is_file()]
    if not root or missing:
        raise DataError(
            f"data.root={root or '(not set)'}: put {WHERE} there, with as much disk again "
            "for the prepared data; missing:\n" + first_few(missing)
        )
    try:
        with tarfile.open(folder / TRAIN) as archive:
            wnids = sorted(Path(name).stem for name in archive.getnames())
        settings = tfds.download.DownloadConfig(manual_dir=folder)
        builder.download_and_prepare(download_config=settings)
    except (tarfile.TarError, KeyError, EOFError, ValueError) as error:
        raise DataError(
            f"{folder}: an archive is damaged or not the official one "
            f"({type(error).__name__}: {error}); get {WHERE} again"
        ) from error
    (builder.data_path / NAMES).write_text("\n".join(wnids) + "\n")
    return builder


def read_names(root: str | Path) -> tuple[str, ...]:
    """WordNet ids of the classes, by id; errors are `prepared`'s."""
    return _names(prepared(root))


def _names(builder: DeeplabImagenet2012) -> tuple[str, ...]:
    return tuple(files.read_lines(Path(builder.data_path) / NAMES))


class ImageNet:
    """Random-access source of a prepared split; prepares it the first time.

    Attributes:
      names: WordNet ids of the classes, by id.

    Raises:
      DataError: as `prepared`, and for a split there is not.
    """

    def __init__(self, root: str | Path, split: str):
        if split not in SPLITS:
            raise DataError(f"ImageNet has no split {split!r}; it has {', '.join(SPLITS)}")
        builder = prepared(root)
        self.names = _names(builder)
        self.examples = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )

    def __len__(self) -> int:
        return len(self.examples)

    def fingerprint(self) -> str:
        """The archives are what they are: how many images were prepared."""
        return f"imagenet {len(self)}"

    def __getitem__(self, index: int) -> dict:
        """{"image" [H, W, 3] uint8, "label" [1, 1] int32, "name"}."""
        example = self.examples[int(index)]
        name = example["name"].decode()
        image = image_files.read_image(name, example["image"])
        label = np.array([[example["label"]]], np.int32)
        return {"image": image, "label": label, "name": name}
