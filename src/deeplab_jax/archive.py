"""Label images packed as the test servers of PASCAL VOC and Cityscapes take them.

VOC's (host.robots.ox.ac.uk:8080, comp6) takes a .tar.gz of indexed PNGs of the ids 0 to 20 by the
images' names; Cityscapes' (cityscapes-dataset.com) a .zip of PNGs of labelIds, which it finds by
CITY_SEQUENCE_FRAME at the beginning of their names. The same label images make the same bytes.
"""

import gzip
import io
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_jax import pictures, runtime
from deeplab_jax.data import datasets, files, image_files, inputs
from deeplab_jax.data.labels import Labels, voc_palette
from deeplab_jax.errors import ConfigError, DataError, first_few


class Server(NamedTuple):
    """What the test server of a dataset takes, beside what the dataset itself says.

    Attributes:
      name: what stems match; the first group is the image's name.
      example: such a stem.
      size: (height, width) of all images, or None.
      file: the archive's name.
      folder: of the files in it.
    """

    name: str
    example: str
    size: tuple[int, int] | None
    file: str
    folder: str


SERVERS = {
    "voc": Server(
        name=r"(\d{4}_\d{6})",
        example="2008_000006",
        size=None,
        file="voc.tar.gz",
        folder="results/VOC2012/Segmentation/comp6_test_cls/",
    ),
    "cityscapes": Server(
        name=r"([^_]+_\d{6}_\d{6})(?:_.*)?",
        example="berlin_000000_000019_leftImg8bit",
        size=(1024, 2048),
        file="cityscapes.zip",
        folder="",
    ),
}


def raw_ids_of(name: str) -> np.ndarray | None:
    """[classes] uint8, the id of each class in the files for a server; None: they are labels."""
    raw_ids = datasets.DATASETS[name].raw_ids
    return None if raw_ids is None else np.array(raw_ids, np.uint8)


def check(name: str, paths: Sequence[Path], labels: Labels | None = None) -> None:
    """Raises before any work for what the server would refuse.

    Args:
      name: one of `SERVERS`.
      paths: of the label images.
      labels: of the network that makes them; None: they exist, whoever made them.

    Raises:
      ConfigError: for other classes than the server's.
      DataError: for names it does not know, or two label images of one image.
    """
    dataset, server, images = datasets.DATASETS[name], SERVERS[name], {}
    if labels is not None and labels.names != tuple(dataset.names):
        raise ConfigError(
            f"predict.archive={name}: the network's classes are {', '.join(labels.names)}; the "
            f"server's are {', '.join(dataset.names)}. If they only have other names, "
            "--mode=archive packs label images whose classes it does not know by name"
        )
    strange = [path for path in paths if not re.fullmatch(server.name, path.stem)]
    if strange:
        raise DataError(
            f"{len(strange)} names are none of {name}'s, which are like {server.example}:\n"
            f"{first_few(strange)}"
        )
    for path in paths:
        image = re.fullmatch(server.name, path.stem)[1]
        if image in images:
            raise DataError(
                f"{path} and {images[image]} are of one image; the server takes one of each"
            )
        images[image] = path
    if len(paths) != dataset.splits["test"]:
        runtime.say(
            f"warning: {len(paths)} label images; the server wants those of all "
            f"{dataset.splits['test']} images of {name}'s test split"
        )


def pack(name: str, paths: Sequence[Path], folder: Path, raw: bool = True) -> Path:
    """Writes the archive of label images that `check` let pass.

    Args:
      name: one of `SERVERS`.
      paths: of the label images.
      folder: where the archive goes.
      raw: the images hold the server's ids; else labels, the places of the classes in their list.

    Returns:
      The archive.

    Raises:
      DataError: for a file that is no label image, of another size than the dataset's, or with ids
        that are no class.
    """
    server, content = SERVERS[name], {}
    with runtime.Progress(len(paths), "pack") as progress:
        for path in sorted(paths, key=lambda path: path.name):
            ids = _ids(name, path, raw)
            picture = pictures.indexed(ids, voc_palette()) if name == "voc" else ids
            content[f"{server.folder}{path.stem}.png"] = pictures.png(picture)
            progress.advance()
    archive = folder / server.file
    runtime.write_whole(archive, _tar(content) if name == "voc" else _zip(content))
    return archive


def pack_folder(config, predictions: str | None, folder: Path) -> Path:
    """`--mode=archive`: packs label images that exist, as `config.predict.archive` says.

    Raises:
      ConfigError: without one of the two, `DataError` as `check` and `pack`.
    """
    name = config.predict.archive
    if not predictions or name is None:
        raise ConfigError(
            "--mode=archive needs --input=PREDICTIONS, a folder of label images, and "
            f"--config.predict.archive={' or '.join(SERVERS)}"
        )
    found = inputs.find_images(predictions)
    paths = [path for path in found if path.suffix.lower() in image_files.MASK_SUFFIXES]
    if not paths:
        raise DataError(
            f"{predictions}: no label images ({', '.join(image_files.MASK_SUFFIXES)}) to pack"
        )
    check(name, paths)
    packed = pack(name, paths, folder, config.predict.raw_ids)
    runtime.say(f"{len(paths)} label images packed: {packed}")
    return packed


def _ids(name: str, path: Path, raw: bool) -> np.ndarray:
    """[H, W] uint8 of the server's ids."""
    mask, size, raw_ids = image_files.read_mask(path), SERVERS[name].size, raw_ids_of(name)
    if size not in (None, mask.shape):
        raise DataError(
            f"{path}: {files.shown_size(mask.shape)} px; the images of {name} have "
            f"{files.shown_size(size)}"
        )
    stored = raw_ids if raw and raw_ids is not None else range(len(datasets.DATASETS[name].names))
    strange = np.setdiff1d(mask, stored)
    if len(strange):
        kind, other = ("ids", "labels") if raw else ("labels", "ids")
        hint = "" if raw_ids is None else f"; predict.raw_ids={not raw} takes {other}"
        raise DataError(
            f"{path}: {', '.join(map(str, strange[:12]))} are no {kind} of {name}'s classes{hint}"
        )
    return (mask if raw or raw_ids is None else raw_ids[mask]).astype(np.uint8)


def _tar(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", fileobj=buffer, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, data in content.items():
            entry = tarfile.TarInfo(name)  # its time is 0, its owner root
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _zip(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # not compressed: PNGs are
        for name, data in content.items():
            entry = zipfile.ZipInfo(name)  # its time is 1980
            entry.create_system = 3  # Unix, on whatever system this is
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()
