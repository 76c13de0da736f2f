"""Files to files: what is written, under which name, of which images; in batches as one by one."""

import json
import tarfile

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import pictures
from deeplab_jax.config import TILE_SIZE
from deeplab_jax.data import image_files, pipeline
from deeplab_jax.data.inputs import find_images
from deeplab_jax.data.labels import VOC_CLASSES, labels
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.predict import answers, predict
from deeplab_jax.predict_files import _tile_size, predict_files, targets

KNOWN = labels(["ground", "sky", "cat"])
OPTIONS = {"crop_size": None, "tile_size": None, "resize": None, "crf": None, "raw_ids": False}


class Network(nn.Module):
    """Small enough to compile at once; the padding counts in its image pooling."""

    classes: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=4, padding=((1, 1), (1, 1)))(x)
        x = nn.relu(x + x.mean(axis=(1, 2), keepdims=True))
        return {"logits": nn.Dense(self.classes)(x)}


@pytest.fixture(scope="module")
def network():
    module = Network()
    return module, module.init(jax.random.key(0), np.zeros((1, 65, 65, 3), np.float32))


def photograph(path, size=(40, 50), seed=0):
    """A file of blocks of colours, of this (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (*(-(-n // 8) for n in size), 3))
    blocks = blocks.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
    Image.fromarray(blocks.astype(np.uint8)).save(path)
    return path


def segment(network, source, output, known=KNOWN, **changes):
    outputs = changes.pop("outputs", ("labels", "overlays"))
    more = {key: changes.pop(key) for key in ("batch_size", "archive") if key in changes}
    written = targets(find_images(source, without=output), output, outputs)
    predict_files(*network, written, output, known, OPTIONS | changes, **more)


def written(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_what_is_written_is_chosen(network, tmp_path):
    image = image_files.read_image(photograph(tmp_path / "in" / "a.png"))
    segment(network, tmp_path / "in", tmp_path / "usual")
    usual = ["labels.json", "labels/a.png", "legend.png", "overlays/a.png"]
    assert written(tmp_path / "usual") == usual
    out = tmp_path / "out"
    segment(network, tmp_path / "in", out, outputs=("labels", "colours", "probabilities"))
    assert written(out)[:2] == ["colours/a.png", "labels.json"]
    assert not (out / "overlays").exists()
    answer = image_files.read_mask(out / "labels" / "a.png")
    np.testing.assert_array_equal(answer, predict(*network, image))
    assert len(np.unique(answer)) > 1
    colours = image_files.read_image(out / "colours" / "a.png")
    np.testing.assert_array_equal(colours, KNOWN.palette[answer])
    with np.load(out / "probabilities" / "a.npz") as stored:
        probs = stored["probabilities"]
        assert stored["classes"].tolist() == ["ground", "sky", "cat"]
    assert (probs.dtype, probs.shape) == (np.float16, (40, 50, 3))
    np.testing.assert_allclose(probs.sum(-1, dtype=np.float32), 1, atol=2e-3)
    chosen = np.take_along_axis(probs, answer[..., None].astype(int), -1)[..., 0]
    np.testing.assert_array_equal(chosen, probs.max(-1))
    assert (tmp_path / "usual" / "overlays" / "a.png").read_bytes() == pictures.png(
        pictures.overlay(image, answer, KNOWN.palette)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"tile_size": (17, 17), "tile_overlap": 4},
        {"crf": {"method": "exact", "iterations": 1}},
        {"resize": 15},
        {"eval_scales": (0.5, 1.0)},
    ],
)
def test_labels_and_probabilities_are_of_one_answer(network, tmp_path, options):
    image = image_files.read_image(photograph(tmp_path / "a.png", (20, 24)))
    common = {"crop_size": (20, 24), "with_probabilities": True}
    (plain,) = answers(*network, [image], **common)
    (answer,) = answers(*network, [image], **common, **options)
    np.testing.assert_array_equal(answer.labels, answer.probabilities.argmax(-1))
    np.testing.assert_array_equal(
        answer.labels, predict(*network, image, crop_size=(20, 24), **options)
    )
    assert answer.probabilities.shape == (20, 24, 3)
    assert np.abs(answer.probabilities - plain.probabilities).max() > 1e-3


def test_batches_give_the_labels_of_one_by_one(network, tmp_path):
    sizes = [(40, 50), (64, 60), (70, 50), (40, 40), (30, 90), (66, 70), (40, 50)]
    for i, size in enumerate(sizes):
        photograph(tmp_path / "in" / f"{i}.png", size, seed=i)
    images = [image_files.read_image(path) for path in find_images(tmp_path / "in")]
    for batch_size in (1, 3):
        segment(network, tmp_path / "in", tmp_path / str(batch_size), batch_size=batch_size)
    names = written(tmp_path / "1")
    assert len(names) == 2 + 2 * len(sizes)
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name
    one = image_files.read_mask(tmp_path / "3" / "labels" / "4.png")
    np.testing.assert_array_equal(one, predict(*network, images[4]))


def test_a_program_for_each_padded_size(network, tmp_path):
    """And none for the images' own: 8 sizes, padded to 66x67 and 66x129."""
    for i in range(8):
        photograph(tmp_path / "in" / f"{i}.png", (40 + i, 45 + 10 * i), seed=i)
    compiled = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        segment(network, tmp_path / "in", tmp_path / "out", crop_size=(66, 67))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 2


def test_items_wait_for_their_kind_but_not_for_ever():
    groups = list(pipeline.grouped("abacbbaddx", lambda c: None if c == "x" else c, 3))
    assert groups == [["b"] * 3, ["a"] * 3, ["x"], ["c"], ["d"] * 2]
    taken = iter(range(100))
    groups = pipeline.grouped(taken, lambda i: i % 50 if i != 20 else 19, 10, most=8)
    assert next(groups) == [0]
    assert next(taken) == 8  # 0 to 7 had been taken
    assert sum(map(len, groups)) == 98
    assert list(pipeline.grouped([], id, 3)) == []


def test_sub_folders_and_names(network, tmp_path):
    names = ("a/0001.jpg", "b/0001.jpg", "b/0001.png", "b/0001_2.png", "b/ü 1.x.png", "b/a\nb.png")
    for name in names:
        photograph(tmp_path / "in" / name)
    segment(network, tmp_path / "in", tmp_path / "in" / "out", outputs=("labels",))
    expected = ["a/0001", "b/0001", "b/0001_2", "b/0001_2_2", "b/a_b", "b/ü 1.x"]
    made = written(tmp_path / "in" / "out" / "labels")
    assert made == [f"{name}.png" for name in expected]
    segment(network, tmp_path / "in", tmp_path / "in" / "out", outputs=("labels",))
    assert written(tmp_path / "in" / "out" / "labels") == made  # results are no input
    segment(network, f"{tmp_path}/i*/../in/a/*.jpg", tmp_path / "deep" / "out", outputs=("labels",))
    assert written(tmp_path / "deep" / "out" / "labels") == ["in/in/a/0001.png"]
    assert len(written(tmp_path / "deep")) == 3


@pytest.mark.parametrize("name", ["labels/in.png", "legend.png", "overlays/x/a.png"])
def test_no_input_is_overwritten(network, tmp_path, name):
    """Neither by its own results nor by another's."""
    path = photograph(tmp_path / name)
    photograph(tmp_path / "in.png")
    photograph(tmp_path / "x" / "a.jpg")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f"would overwrite the input .*{path.name}"):
        segment(network, tmp_path, tmp_path)
    assert path.read_bytes() == before
    assert written(tmp_path) == sorted([name, "in.png", "x/a.jpg"])


def grey(image):
    return image.convert("L")


def turned(image):
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.parametrize(
    ("name", "make", "size"),
    [
        ("grey.png", grey, (40, 50)),
        ("transparent.png", lambda image: image.convert("RGBA"), (40, 50)),
        ("print.jpg", lambda image: image.convert("CMYK"), (40, 50)),
        ("bilevel.png", lambda image: image.convert("1"), (40, 50)),
        ("palette.png", lambda image: image.convert("P"), (40, 50)),
        ("grey_alpha.png", lambda image: image.convert("LA"), (40, 50)),
        ("turned.png", turned, (50, 40)),
        ("pixel.png", lambda image: image.resize((1, 1)), (1, 1)),
        ("line.png", lambda image: image.resize((5000, 1)), (1, 5000)),
        ("column.png", lambda image: image.resize((1, 700)), (700, 1)),
    ],
)
def test_images_of_every_kind(network, tmp_path, name, make, size):
    with Image.open(photograph(tmp_path / "plain.png")) as image:
        made = make(image.convert("RGB"))
        made.save(tmp_path / name, exif=made.getexif())
    segment(network, tmp_path / name, tmp_path / "out", crop_size=(65, 65))
    answer = image_files.read_mask(tmp_path / "out" / "labels" / f"{name.split('.')[0]}.png")
    assert answer.shape == size
    seen = image_files.read_image(tmp_path / name)
    np.testing.assert_array_equal(answer, predict(*network, seen, crop_size=(65, 65)))
    overlay = image_files.read_image(tmp_path / "out" / "overlays" / f"{name.split('.')[0]}.png")
    assert overlay.shape == (*size, 3)


def test_a_damaged_file_is_named_and_what_precedes_it_is_done(network, tmp_path):
    for i in range(9):
        photograph(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "7.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"7\.png: not a readable image"):
        segment(network, tmp_path / "in", tmp_path / "out", outputs=("labels",))
    assert written(tmp_path / "out" / "labels") == [f"{i}.png" for i in range(7)]


def test_predictions_for_a_test_server(tmp_path):
    module = Network(classes=21)
    network = module, module.init(jax.random.key(0), np.zeros((1, 65, 65, 3), np.float32))
    for i in range(3):
        photograph(tmp_path / "in" / f"2008_00000{i}.jpg", seed=i)
    known, out = labels(VOC_CLASSES), tmp_path / "out"
    segment(network, tmp_path / "in", out, known, archive="voc")
    with tarfile.open(out / "voc.tar.gz") as archive:
        assert len(archive.getnames()) == 3
    with Image.open(out / "labels" / "2008_000001.png") as index:
        assert index.mode == "P"
    assert json.loads((out / "labels.json").read_text())["classes"][20]["name"] == "tvmonitor"
    with pytest.raises(ConfigError, match=r"the network's classes are class_0, .*tvmonitor"):
        segment(network, tmp_path / "in", out, labels((), 21), archive="voc")
    photograph(tmp_path / "in" / "other.jpg")
    with pytest.raises(DataError, match=r"(?s)1 names are none of voc's.*labels/other\.png"):
        segment(network, tmp_path / "in", tmp_path / "none", known, archive="voc")
    assert not (tmp_path / "none").exists()


def test_large_images_are_seen_in_tiles_unless_something_else_is_wanted():
    small, large = (5000, 5000), (5000, 5001)
    assert _tile_size(small, OPTIONS) is None
    assert _tile_size(large, OPTIONS) == TILE_SIZE
    for other in ({"resize": 513}, {"crf": {"iterations": 1}}, {"tile_size": (6000, 6000)}):
        assert _tile_size(large, OPTIONS | other) is None
    assert _tile_size(small, OPTIONS | {"tile_size": (65, 65)}) == (65, 65)
