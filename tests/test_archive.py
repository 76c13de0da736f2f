"""Archives for test servers: what is in them, and what the servers would refuse."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import CONFIGS
from PIL import Image

from deeplab_jax import archive, config, main
from deeplab_jax.config import ARCHIVES
from deeplab_jax.data import datasets
from deeplab_jax.data.labels import voc_palette
from deeplab_jax.errors import ConfigError, DataError

RAW = np.array(datasets.DATASETS["cityscapes"].raw_ids, np.uint8)


def settings(dataset="voc", **changes):
    changes = {"predict.archive": dataset} | {k.replace("__", "."): v for k, v in changes.items()}
    return config.load(f"{CONFIGS}/v3plus.py:{dataset}", changes)


def voc_images(folder, ids=tuple(range(21))):
    folder.mkdir()
    label = np.resize(np.array(ids, np.uint8), (30, 40))
    for name in ("2008_000006", "2008_000008"):
        Image.fromarray(label).save(folder / f"{name}.png")
    return label


def street_images(folder, ids):
    folder.mkdir()
    label = np.resize(ids, (1024, 2048))
    for name in ("berlin_000000_000019_leftImg8bit", "bonn_000001_000019_pred"):
        Image.fromarray(label).save(folder / f"{name}.png")
    return label


def test_an_empty_archive_is_not_written(tmp_path):
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "labels" / "2008_000006.jpg")
    with pytest.raises(DataError, match="no label images"):
        main.run(settings(), "archive", None, str(tmp_path / "labels"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vocs(tmp_path):
    label = voc_images(tmp_path / "labels")
    packed = main.run(settings(), "archive", None, str(tmp_path / "labels"), tmp_path / "out")
    assert packed == tmp_path / "out" / "voc.tar.gz"
    with tarfile.open(packed, "r:gz") as archive_file:
        names = archive_file.getnames()
        content = archive_file.extractfile(names[0]).read()
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    assert names == [f"{folder}/2008_000006.png", f"{folder}/2008_000008.png"]
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "P"
        assert image.getpalette() == voc_palette().ravel().tolist()
        np.testing.assert_array_equal(np.asarray(image), label)


@pytest.mark.parametrize("raw", [True, False])
def test_cityscapes(tmp_path, raw, capsys):
    """Of label images in the dataset's own ids, and of labels."""
    label = street_images(tmp_path / "labels", RAW if raw else np.arange(19, dtype=np.uint8))
    given = settings("cityscapes", predict__raw_ids=raw)
    packed = main.run(given, "archive", tmp_path, str(tmp_path / "labels"))
    assert packed == tmp_path / "archive" / "cityscapes.zip"
    with zipfile.ZipFile(packed) as archive_file:
        assert archive_file.namelist() == [
            "berlin_000000_000019_leftImg8bit.png",
            "bonn_000001_000019_pred.png",
        ]
        content = archive_file.read("bonn_000001_000019_pred.png")
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), label if raw else RAW[label])
    assert "2 label images; the server wants those of all 1525 images" in capsys.readouterr().out
    other = settings("cityscapes", predict__raw_ids=not raw)
    with pytest.raises(DataError, match=rf"are no .*; predict\.raw_ids={raw} takes"):
        main.run(other, "archive", tmp_path, str(tmp_path / "labels"))


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_same_label_images_make_the_same_bytes(tmp_path, name):
    for folder in ("one", "other"):
        if name == "voc":
            voc_images(tmp_path / folder)
        else:
            street_images(tmp_path / folder, RAW)
        for i, path in enumerate(sorted((tmp_path / folder).iterdir())):
            os.utime(path, (i, len(folder)))
        paths = sorted((tmp_path / folder).iterdir(), reverse=folder == "one")
        archive.pack(name, paths, tmp_path / folder)
    file = archive.SERVERS[name].file
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_what_the_servers_would_refuse(tmp_path):
    label = voc_images(tmp_path / "labels", (0, 20, 255))

    def pack(dataset="voc", **changes):
        return main.run(
            settings(dataset, **changes), "archive", tmp_path / "w", str(tmp_path / "labels")
        )

    with pytest.raises(DataError, match=r"2008_000006\.png: 255 are no labels of voc's classes$"):
        pack()
    with pytest.raises(DataError, match=r"(?s)2 names are none of cityscapes's.*2008_000006\.png"):
        pack("cityscapes")
    (tmp_path / "labels" / "again").mkdir()
    Image.fromarray(label).save(tmp_path / "labels" / "again" / "2008_000006.png")
    with pytest.raises(DataError, match="are of one image; the server takes one of each"):
        pack()
    for path in [*(tmp_path / "labels").rglob("*.png")]:
        path.unlink()
    for kind in ("pred", "leftImg8bit"):
        Image.fromarray(label).save(tmp_path / "labels" / f"ulm_000000_000019_{kind}.png")
    with pytest.raises(DataError, match="are of one image"):
        pack("cityscapes")
    (tmp_path / "labels" / "ulm_000000_000019_pred.png").unlink()
    with pytest.raises(DataError, match=r"40x30 px; the images of cityscapes have 2048x1024"):
        pack("cityscapes")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"predict.archive": "vok"}, r"predict\.archive='vok'.*did you mean 'voc'"),
        ({"predict.archive": "cityscapes"}, "takes 19 classes, and model.num_classes is 21"),
        ({"predict.archive": "voc", "predict.outputs": ("overlays",)}, "has none"),
        ({"predict.outputs": ("labels", "colors")}, r"did you mean 'colours'"),
        ({"predict.outputs": ()}, r"takes some of labels, colours, overlays, probabilities"),
        ({"predict.batch_size": 0}, "must be at least 1"),
    ],
)
def test_what_does_not_go_together(changes, words):
    with pytest.raises(ConfigError, match=words):
        config.check(config.load(f"{CONFIGS}/v3plus.py:voc", changes))


def test_what_is_missing(tmp_path):
    for given, folder in ((settings(), None), (settings(predict__archive=None), str(tmp_path))):
        with pytest.raises(ConfigError, match=r"--config\.predict\.archive=voc or city"):
            main.run(given, "archive", tmp_path, folder)


def test_every_server_is_of_a_dataset():
    assert archive.SERVERS.keys() == set(ARCHIVES)
