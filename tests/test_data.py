import struct
import zlib

import numpy as np
import pytest
from conftest import GOLDEN, SHARED, pairs, write_folder
from PIL import Image

from deeplab_jax.data import datasets, image_files, labels, pipeline, transforms
from deeplab_jax.errors import DataError

DATA = {
    "name": "folder",
    "root": "",
    "normalization": "zero_mean",
    "crop_size": (33, 33),
    "min_resize_value": None,
    "min_scale_factor": 0.5,
    "max_scale_factor": 2.0,
    "scale_factor_step_size": 0.25,
    "flip": True,
    "ignore_label": 255,
    "num_threads": 2,
    "num_workers": 0,
    "augment_on": "host",
    "cache": False,
}


# --- transforms, against the official code ---


def test_scaling_and_padding_equal_the_reference():
    golden = np.load(GOLDEN / "fn_preprocess.npz")
    image, label = golden["image"], golden["label"][..., 0]
    for scale in (0.5, 0.75, 1.25, 2.0):
        size = tuple(int(n * np.float32(scale)) for n in image.shape[:2])
        ours = transforms.resize_bilinear(image, size)
        np.testing.assert_allclose(ours, golden[f"scaled_img_{scale}"], atol=1e-3)
        ours = transforms.resize_nearest(label, size)
        np.testing.assert_array_equal(ours, golden[f"scaled_lab_{scale}"][..., 0])
    mean, _ = transforms.normalization("zero_mean")
    padded, padded_label = np.empty((65, 65, 3), np.float32), np.empty((65, 65), np.uint8)
    transforms.pad_into(padded, image, mean)
    transforms.pad_into(padded_label, label, 255)
    np.testing.assert_array_equal(padded, golden["proc_xception_65"])
    np.testing.assert_array_equal(padded_label, golden["lab_xception_65"][..., 0])


def test_nearest_equals_the_reference():
    golden = np.load(GOLDEN / "fn_resize.npz")
    label = golden["lab"][0, ..., 0]
    for name in golden.files:
        if name.startswith("nearest_ac_"):
            size = tuple(map(int, name.rsplit("_", 1)[1].split("x")))
            ours = transforms.resize_nearest(label, size)
            np.testing.assert_array_equal(ours, golden[name][0, ..., 0])


def test_scale_factors_equal_the_reference():
    expected = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    np.testing.assert_allclose(transforms.scale_factors(0.5, 2.0, 0.25), expected)
    assert len(transforms.scale_factors(0.5, 2.0, 0.1)) == 16


def test_a_window_of_the_scaled_image_is_that_part_of_it():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    window = (slice(7, 40), slice(20, 53))
    whole = transforms.resize_bilinear(image, (71, 83))
    np.testing.assert_allclose(
        transforms.resize_bilinear(image, (71, 83), window), whole[window], atol=1e-4
    )
    label = image[..., 0]
    np.testing.assert_array_equal(
        transforms.resize_nearest(label, (71, 83), window),
        transforms.resize_nearest(label, (71, 83))[window],
    )


def augment(**changes):
    options = {k: DATA[k] for k in ("min_scale_factor", "max_scale_factor", "flip")}
    options |= {"crop_size": (33, 41), "scale_factor_step_size": 0.0, "pad_value": (1.0, 2.0, 3.0)}
    return transforms.Augment(**options | changes)


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (20, 300), (33, 41), (90, 17)])
def test_augmenting_makes_no_new_label_value_at_any_size(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    label = rng.choice(np.array([3, 7, 200, 255], np.uint8), size)
    for seed in range(20):
        out = augment()({"image": image, "label": label}, np.random.default_rng(seed))
        assert out["image"].shape == (33, 41, 3)
        assert out["image"].dtype == np.float32
        assert out["label"].shape == (33, 41)
        assert set(np.unique(out["label"])) <= {3, 7, 200, 255}


def test_outside_the_image_is_the_pad_value_and_void():
    example = {
        "image": np.full((10, 12, 3), 9, np.uint8),
        "label": np.zeros((10, 12), np.uint8),
    }
    same = augment(min_scale_factor=1.0, max_scale_factor=1.0, flip=False)
    out = same(example, np.random.default_rng(0))
    void = out["label"] == 255
    np.testing.assert_array_equal(out["image"][void], np.tile([1.0, 2.0, 3.0], (void.sum(), 1)))
    assert (out["image"][~void] == 9).all()
    assert (~void).sum() == 10 * 12


def test_image_and_label_move_together():
    image = np.zeros((60, 70, 3), np.uint8)
    label = np.zeros((60, 70), np.uint8)
    image[20:40, 10:35] = 255
    label[20:40, 10:35] = 1
    for seed in range(10):
        out = augment()({"image": image, "label": label}, np.random.default_rng(seed))
        known = out["label"] != 255
        bright = out["image"][..., 0] > 127.5
        assert (bright == (out["label"] == 1))[known].mean() > 0.93


def test_a_twin_whose_beacon_left_the_crop_becomes_void():
    label = np.zeros((50, 50), np.uint8)
    links = np.zeros((50, 50), np.uint8)
    label[5:10, 5:10] = 7
    links[5:10, 5:10], links[40:44, 40:44] = 1, 2
    image = np.zeros((50, 50, 3), np.uint8)
    still = {"min_scale_factor": 1.0, "max_scale_factor": 1.0, "flip": False}
    whole = augment(**still, crop_size=(50, 50))
    out = whole({"image": image, "label": label, "links": links}, np.random.default_rng(0))
    assert (out["label"] == 7).sum() == 25
    for seed in range(10):  # 30 px cannot hold both
        cut = augment(**still, crop_size=(30, 30))
        out = cut({"image": image, "label": label, "links": links}, np.random.default_rng(seed))
        assert 7 not in out["label"]


# --- files ---


def test_palettes_equal_the_reference():
    golden = np.load(GOLDEN / "fn_colormaps.npz")
    np.testing.assert_array_equal(labels.voc_palette(), golden["pascal"][:256])


@pytest.mark.parametrize(("bits", "ids"), [(4, [0, 1, 7, 15]), (2, [0, 1, 2, 3]), (1, [0, 1])])
def test_grey_masks_of_few_bits_keep_their_ids(tmp_path, bits, ids):
    """Pillow cannot write these, other tools do: a grey PNG by hand."""

    def chunk(name, body):
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    packed = 0
    for i in ids:
        packed = packed << bits | i
    row = b"\0" + (packed << (-bits * len(ids)) % 8).to_bytes(-(-bits * len(ids) // 8))
    header = struct.pack(">IIBBBBB", len(ids), 1, bits, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")]
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(image_files.read_mask(tmp_path / "mask.png"), [ids])


def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path):
    # A valid header of a 100000 x 100000 picture; the data behind it is never reached.
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    bomb += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + b"\0\0\0\0"
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(DataError, match=r"bomb\.png: too large"):
        image_files.read_image(tmp_path / "bomb.png")


def test_pairs_check_sizes_and_ids(data_folder):
    source = pairs(data_folder)
    example = source[0]
    assert example["image"].shape == (40, 50, 3)
    assert set(np.unique(example["label"])) == {0, 1, 2, 255}
    with pytest.raises(DataError, match=r"ids 2 are outside the 2 classes 0\.\.1"):
        pairs(data_folder, classes=2)[0]
    with pytest.raises(DataError, match="255 usually marks void"):
        pairs(data_folder, ignore_label=254)[0]
    Image.new("L", (50, 41)).save(data_folder / "masks" / "scene 0.png")
    with pytest.raises(DataError, match="mask of 50x41 for an image of 50x40"):
        source[0]


def test_folder_splits_by_name_or_by_list(tmp_path):
    root = write_folder(tmp_path, count=12)
    train = pairs(root, "train")
    val = pairs(root, "val")
    assert (len(train), len(val)) == (11, 1)
    (root / "notes.txt").write_text("no list of a split")
    assert len(pairs(root, "train")) == 11
    assert not set(train.images) & set(val.images)
    (root / "val.txt").write_bytes(b"scene 3\r\nscene 5\r\n\r\n")
    assert [p.stem for p in pairs(root, "val").images] == ["scene 3", "scene 5"]
    (root / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match=r"train\.txt: no such split list; there are notes, val"):
        pairs(root, "train")
    for entry, message in (("../secret", "stay inside"), ("nobody", "do not exist")):
        (root / "val.txt").write_text(entry)
        with pytest.raises(DataError, match=message):
            pairs(root, "val")


def test_folder_names_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        pairs(tmp_path / "nothing", "train")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="no images"):
        pairs(tmp_path, "train")
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "lonely.jpg")
    with pytest.raises(DataError, match=r"lonely\.jpg: no mask"):
        pairs(tmp_path, "train")


def test_voc_layout(tmp_path):
    for folder in ("JPEGImages", "SegmentationClassAug", "lists"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "JPEGImages" / "2007_1.jpg")
    picture = Image.fromarray(
        np.array([[0, 15], [255, 20]], np.uint8).repeat(2, 0).repeat(3, 1)[:, :5]
    )
    picture.putpalette(labels.voc_palette().tobytes())
    picture.save(tmp_path / "SegmentationClassAug" / "2007_1.png")
    (tmp_path / "lists" / "val.txt").write_text("2007_1\n")
    source = datasets.source("voc", tmp_path, "val", 21, 255)
    assert set(np.unique(source[0]["label"])) == {0, 15, 20, 255}
    (tmp_path / "lists" / "val.txt").write_text("2007_1\n2007_2\n")
    with pytest.raises(DataError, match="2 listed files do not exist"):
        datasets.source("voc", tmp_path, "val", 21, 255)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the VOC subset beside the project")
def test_real_voc_masks_hold_classes_and_void_only():
    source = datasets.source("voc", SHARED / "data" / "voc2012_subset", "val", 21, 255)
    assert len(source) == 223
    ids = set()
    for i in range(0, 223, 20):
        ids |= set(np.unique(source[i]["label"]).tolist())
    assert {0, 15, 255} <= ids <= {*range(21), 255}


# --- pipeline ---


def stream(root, seed=0, threads=2):
    source = pairs(root)
    return pipeline.train_iterator(source, DATA | {"num_threads": threads}, seed, batch_size=3)


def assert_same(a, b):
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_the_stream_depends_on_the_seed_alone(data_folder):
    one, other = stream(data_folder), stream(data_folder, threads=1)
    for _ in range(4):
        assert_same(next(one), next(other))
    different = next(stream(data_folder, seed=1))
    assert (next(stream(data_folder))["image"] != different["image"]).any()


def test_the_stream_goes_on_where_its_state_says(data_folder):
    one = stream(data_folder)
    for _ in range(3):
        next(one)
    state = one.get_state()
    expected = [next(one) for _ in range(2)]
    other = stream(data_folder)
    other.set_state(state)
    for batch in expected:
        assert_same(next(other), batch)


def test_eval_batches_hold_every_image_once_at_one_size_each(tmp_path):
    root = write_folder(tmp_path, count=5)
    Image.new("RGB", (100, 70)).save(root / "images" / "scene 2.jpg")
    Image.new("L", (100, 70)).save(root / "masks" / "scene 2.png")
    source = pairs(root)
    seen = []
    for images, examples in pipeline.eval_batches(source, (65, 65), np.zeros(3), 3):
        assert images.shape[0] == 3
        assert images.shape[1:3] in ((65, 65), (129, 129))
        for image, example in zip(images, examples):
            h, w = example["label"].shape
            np.testing.assert_array_equal(image[:h, :w], example["image"])
            seen.append(example["name"])
    assert sorted(seen) == [f"scene {i}" for i in range(5)]
