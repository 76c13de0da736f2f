"""Images with a class each: crops, folders, the embedded windows, ImageNet's archives."""

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from conftest import ROOT
from PIL import Image

from deeplab_jax import config as configuration
from deeplab_jax.data import imagenet, pipeline, shapes, synthetic
from deeplab_jax.data.classification import (
    ImageFolder,
    RandomResizedCrop,
    central_crop,
    jittered,
)
from deeplab_jax.data.imagenet import ImageNet
from deeplab_jax.data.shapes import Shapes
from deeplab_jax.errors import ConfigError, DataError


def crop(**changes):
    settings = {
        "crop_size": (24, 32),
        "min_crop_area": 0.2,
        "max_aspect_ratio": 4 / 3,
        "flip": True,
        "color_jitter": 0.4,
    }
    return RandomResizedCrop(**settings | changes)


def test_random_crops_keep_the_label_and_the_range():
    rng = np.random.default_rng(0)
    for size in ((50, 70, 3), (9, 200, 3), (24, 32, 3), (1, 1, 3)):
        example = {"image": rng.integers(0, 256, size, np.uint8), "label": np.array([[7]])}
        for _ in range(20):
            out = crop()(example, rng)
            assert out["image"].shape == (24, 32, size[-1])
            assert out["image"].dtype == np.float32
            assert out["label"].tolist() == [[7]]
            assert out["label"].dtype == np.int32
            assert 0 <= out["image"].min()
            assert out["image"].max() <= 255


def test_windows_have_the_area_and_shape_asked_for():
    rng = np.random.default_rng(0)
    windows = [crop()._window((300, 400), rng) for _ in range(500)]
    sides = np.array([[w.stop - w.start for w in pair] for pair in windows])
    share, ratio = sides.prod(axis=1) / (300 * 400), sides[:, 1] / sides[:, 0]
    assert 0.19 < share.min() < 0.25
    assert 0.9 < share.max() <= 1
    assert 0.73 < ratio.min() < 0.8
    assert 1.28 < ratio.max() < 1.36
    assert all(0 <= w.start and w.stop <= n for pair in windows for w, n in zip(pair, (300, 400)))


def test_the_same_generator_gives_the_same_crop():
    example = {"image": np.arange(60 * 80 * 3).reshape(60, 80, 3) % 256, "label": np.array([[1]])}
    one, two = (crop()(example, np.random.default_rng(3))["image"] for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_without_randomness_an_image_stays():
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    whole = crop(min_crop_area=1.0, max_aspect_ratio=1.0, flip=False, color_jitter=0.0)
    out = whole({"image": image, "label": np.array([[0]])}, np.random.default_rng(0))
    np.testing.assert_array_equal(out["image"], image)
    np.testing.assert_array_equal(central_crop(image, (24, 32), 1.0), image)


def test_jitter_moves_brightness_contrast_and_saturation():
    image = np.random.default_rng(0).uniform(60, 120, (8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(jittered(image, (0, 0, 0)), image, rtol=1e-5)
    np.testing.assert_allclose(jittered(image, (0.5, 0, 0)), 1.5 * image, 1e-5)
    assert np.ptp(jittered(image, (0, -1, 0))) < 1e-3
    grey = jittered(image, (0, 0, -1))
    assert np.abs(grey - grey[..., :1]).max() < 1e-3


def test_a_central_crop_is_the_middle_and_keeps_the_shape():
    image = np.zeros((100, 200, 3), np.uint8)
    image[25:75, 75:125] = 200
    np.testing.assert_array_equal(central_crop(image, (50, 50), 0.5), 200)
    assert central_crop(image, (10, 20), 0.875).shape == (10, 20, 3)
    assert central_crop(image[:1, :1], (5, 5), 0.1).shape == (5, 5, 3)


def test_shapes_are_a_function_of_seed_and_index():
    one, again = Shapes("train")[11], Shapes("train")[11]
    np.testing.assert_array_equal(one["image"], again["image"])
    assert one["image"].shape == (97, 97, 3)
    assert one["image"].dtype == np.uint8
    assert (Shapes("train", seed=1)[11]["image"] != one["image"]).any()
    assert (len(Shapes("train")), len(Shapes("val"))) == (4000, 1000)
    with pytest.raises(ValueError, match="split 'test'"):
        Shapes("test")


def test_shapes_are_frozen():
    """A change here is another dataset: raise synthetic.VERSION, and say so in the CHANGELOG."""
    digest = hashlib.sha256()
    for i in range(20):
        digest.update(Shapes("val")[i]["label"].tobytes())
    assert digest.hexdigest()[:16] == "800ddf2d7abaddf4"
    colours = [Shapes("val")[i]["image"].mean(axis=(0, 1)) for i in range(4)]
    wanted = [
        [107.1, 72.8, 130.8],
        [123.0, 77.4, 149.1],
        [156.4, 161.2, 183.1],
        [128.6, 148.3, 118.8],
    ]
    np.testing.assert_allclose(colours, wanted, atol=0.2)


def test_a_window_shows_the_object_it_is_labelled_with_in_its_middle():
    source, kinds, largest = Shapes("train"), [], []
    for i in range(120):
        scene, kind, window = source.window(i)
        assert source[i]["label"].tolist() == [[kind - synthetic.DISK]]
        kinds.append(kind)
        label = np.pad(scene.label, shapes.OUTSIDE)[window]
        middle = label[tuple(slice(n // 4, n - n // 4) for n in label.shape)]
        seen = np.bincount(middle.ravel(), minlength=256)
        if kind in synthetic.SOLIDS:
            largest.append(seen[kind] == seen[1:255].max())
        else:
            assert seen[kind] > 0  # thin lines are few pixels
    assert np.mean(largest) > 0.9
    assert set(kinds) == set(range(synthetic.DISK, synthetic.MESH + 1))
    assert source.window(6)[2] != source.window(7)[2]  # two objects of one scene


def write_images(root: Path, classes=("cat", "dog"), splits=("train", "val")) -> Path:
    for split in splits:
        for k, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (12 + i, 10), (100 * k, i, 0)).save(folder / f"{i}.png")
    return root


def test_folders_by_class(tmp_path):
    root = write_images(tmp_path)
    source = ImageFolder(root, "val")
    assert source.names == ("cat", "dog")
    assert [int(example["label"][0, 0]) for example in map(source.__getitem__, range(4))] == [
        0,
        0,
        1,
        1,
    ]
    assert source[3]["image"].shape == (10, 13, 3)
    assert source[3]["image"][0, 0, 0] == 100
    config = configuration.load(f"{ROOT}/configs/imagenet.py:mobilenet_v2,image_folder")
    config.data.root = str(root)
    with pytest.raises(ConfigError, match=r"model.num_classes=2"):
        pipeline.source(config.data, "train", 1000)
    (root / "train" / ".ipynb_checkpoints").mkdir()  # hidden things are neither class nor image
    (root / "val" / "dog" / "._1.png").write_bytes(b"x")
    assert len(ImageFolder(root, "val")) == 4
    assert pipeline.class_labels(config.data, 2).names == ("cat", "dog")
    batches = pipeline.train_iterator(pipeline.source(config.data, "train", 2), config.data, 0, 2)
    batch = next(batches)
    assert batch["image"].shape == (2, 299, 299, 3)
    assert batch["label"].shape == (2, 1, 1)


def test_folders_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        ImageFolder(tmp_path, "train")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    write_images(tmp_path, ("cats",), ("val",))
    with pytest.raises(DataError, match="holds no images; remove"):
        ImageFolder(tmp_path, "train")
    with pytest.raises(DataError, match="did you mean 'cat'"):
        ImageFolder(tmp_path, "val")


WNIDS = ("n01440764", "n01443537", "n15075141")


def encoded(rng, mode="RGB", form="JPEG") -> bytes:
    stream = io.BytesIO()
    pixels = rng.integers(0, 255, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, form)
    return stream.getvalue()


def add(archive, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_archives(root: Path) -> None:
    """ImageNet's three archives in the official layout, three classes of three images."""
    rng = np.random.default_rng(0)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as archive:
        for k in (2, 0, 1):  # in no order
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as images:
                for i in range(3):
                    kind = {(1, 0): ("CMYK", "JPEG"), (2, 1): ("RGB", "PNG")}.get((k, i), ())
                    add(images, f"{WNIDS[k]}_{i}.JPEG", encoded(rng, *kind))
            add(archive, f"{WNIDS[k]}.tar", inner.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for i in (3, 1, 2):
            add(archive, f"ILSVRC2012_val_{i:08d}.JPEG", encoded(rng))
    # The devkit's own numbers: 1 is the last WordNet id, 2 the first; 4 is no leaf.
    fields = ("ILSVRC2012_ID", "WNID", "num_children")
    synsets = np.zeros(4, dtype=[(name, "O") for name in fields])
    rows = ((1, WNIDS[2], 0), (2, WNIDS[0], 0), (3, WNIDS[1], 0), (4, "n00001740", 3))
    for i, row in enumerate(rows):
        synsets[i] = row
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    folder = "ILSVRC2012_devkit_t12/data"
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        add(archive, f"{folder}/meta.mat", meta.getvalue())
        add(archive, f"{folder}/ILSVRC2012_validation_ground_truth.txt", b"1\n2\n3\n")


READ = """
import sys
from deeplab_jax.data.imagenet import ImageNet
for split in ("train", "val"):
    source = ImageNet(sys.argv[1], split)
    for example in (source[i] for i in range(len(source))):
        print(split, example["name"], int(example["label"][0, 0]), *example["image"].shape)
assert not {"tensorflow", "jax"} & sys.modules.keys(), "no framework is needed to read data"
"""


def test_imagenet_from_its_archives_without_tensorflow(tmp_path):
    write_archives(tmp_path)

    def read():
        done = subprocess.run(
            [sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return sorted(line for line in done.stdout.splitlines() if line.startswith(("tr", "val")))

    lines = read()
    assert imagenet.read_names(tmp_path) == WNIDS
    wanted = [f"train {w}_{i} {k} 40 50 3" for k, w in enumerate(WNIDS) for i in range(3)]
    truth = {1: 2, 2: 0, 3: 1}
    wanted += [f"val ILSVRC2012_val_{i:08d} {k} 40 50 3" for i, k in truth.items()]
    assert lines == sorted(wanted)
    for archive in tmp_path.glob("*.tar*"):  # prepared: they are not needed any more
        archive.unlink()
    assert read() == lines


def test_imagenet_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"ILSVRC2012_img_val.tar and (.|\n)*missing:"):
        ImageNet(tmp_path, "train")
    with pytest.raises(DataError, match="no split 'test'"):
        ImageNet(tmp_path, "test")
    write_archives(tmp_path)
    devkit = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    devkit.write_bytes(devkit.read_bytes()[:200])
    with pytest.raises(DataError, match="damaged or not the official one"):
        ImageNet(tmp_path, "train")
