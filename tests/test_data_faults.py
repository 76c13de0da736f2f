"""Bad data and what each must show: a test a row, called test_cNN_... by the row's number.

C1 truncated JPEG, C2 truncated PNG mask, C3 file of no bytes, C4 text called .png: named, exit code
3; with data.on_error=skip counted, and the run goes on. C5 sizes that differ. C6 missing partners.
C7 ids past the classes. C8 masks of RGB colours. C9 palette masks. C10 16-bit masks. C11 JPEG and
smoothed masks. C12 nothing but void (the loss of it: test_losses_metrics.py). C13 a class that is
not in the evaluation split. C14 images of other modes. C15 EXIF orientation. C16 tiny and long
images (their augmentation: test_data.py). C17 odd names. C18 empty and overlapping splits.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import CHILD_ENVIRONMENT, CONFIGS, SHARED, pairs, write_folder
from PIL import Image
from test_data import DATA, stream
from test_train import SMALL, small

from deeplab_jax import evaluate, main, output
from deeplab_jax.data import balance, files, folder, labels, pipeline
from deeplab_jax.data.skipping import Skipping, unreadable
from deeplab_jax.data.transforms import Augment
from deeplab_jax.errors import DataError, UnreadableError


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


UNREADABLE = {
    "c01": ("images/scene 1.jpg", halved, "damaged or truncated image"),
    "c02": ("masks/scene 1.png", halved, "damaged or truncated mask"),
    "c03": ("images/scene 1.jpg", lambda path: path.write_bytes(b""), "the file has 0 bytes"),
    "c04": ("masks/scene 1.png", lambda path: path.write_text("road"), "not a readable mask"),
}


@pytest.fixture(params=UNREADABLE)
def damaged(request, data_folder):
    """(folder, words): one of four examples cannot be read."""
    name, damage, words = UNREADABLE[request.param]
    damage(data_folder / name)
    return data_folder, rf"(?s){name.split('/')[1]}: .*{words}.*replace or remove it"


def test_c01_to_c04_end_naming_the_file(damaged, tmp_path):
    root, words = damaged
    with pytest.raises(UnreadableError, match=words) as caught:
        pairs(root)[1]
    assert caught.value.exit_code == 3
    batches = stream(root)
    with pytest.raises(DataError, match=words):
        [next(batches) for _ in range(4)]
    with pytest.raises(DataError, match=words):
        main.run(small(root), "check_data", tmp_path)


def test_c01_to_c04_are_skipped_counted_and_the_stream_is_the_same_wherever_it_goes_on(
    damaged, capsys
):
    root, _ = damaged
    data = DATA | {"root": str(root), "on_error": "skip", "label_map": None}
    source = pipeline.source(data, "all", 3)
    batches = pipeline.train_iterator(source, data, 0, batch_size=3)
    expected = [next(batches) for _ in range(4)]
    assert list(unreadable(source)) == [1]
    assert capsys.readouterr().out.count("skipped: ") == 1

    again = pipeline.source(data, "all", 3)  # knows nothing yet, as a resumed process
    resumed = pipeline.train_iterator(again, data, 0, batch_size=3)
    next(resumed)
    state, goes_on = resumed.get_state(), pipeline.train_iterator(again, data, 0, batch_size=3)
    goes_on.set_state(state)
    for batch in expected[1:]:
        other = next(goes_on)
        assert all((batch[key] == other[key]).all() for key in batch)

    assert again[1]["name"] == "scene 2"
    seen = [e["name"] for _, group in pipeline.eval_batches(again, None, 0.0, 2) for e in group]
    assert sorted(seen) == ["scene 0", "scene 2", "scene 3"]
    assert balance.pixel_counts(again, 3, 255).shape == (4, 3)


def test_c01_is_left_out_of_the_check_that_goes_on(data_folder, tmp_path, capsys):
    halved(data_folder / "images" / "scene 1.jpg")
    main.run(small(data_folder, data__on_error="skip"), "check_data", tmp_path)
    said = capsys.readouterr().out
    assert "4 examples, 1 of them bad" in said
    assert "1 will be passed over:" in said


def test_c01_too_many_to_skip_is_no_accident(tmp_path):
    root = write_folder(tmp_path / "data", count=12, size=(4, 5))
    for path in (root / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="11 of 12 examples cannot be read, too many"):
        Skipping(pairs(root))[0]


def test_c01_in_a_process_exits_with_3_and_no_trace(data_folder, tmp_path):
    halved(data_folder / "images" / "scene 1.jpg")
    options = SMALL | {"data.root": data_folder}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deeplab_jax.main", "--mode=check_data"),
            *(f"--config={CONFIGS}/v3plus.py:mobilenet_v2,folder", f"--workdir={tmp_path / 'w'}"),
            *[f"--config.{key}={value}" for key, value in options.items()],
        ],
        capture_output=True,
        text=True,
        env=CHILD_ENVIRONMENT,
    )
    assert done.returncode == 3, done.stderr
    assert "scene 1.jpg: damaged or truncated image" in done.stderr
    assert "Traceback" not in done.stderr


def test_c05_both_sizes_are_told(data_folder):
    Image.new("L", (50, 41)).save(data_folder / "masks" / "scene 0.png")
    with pytest.raises(DataError, match=r"scene 0\.png: mask of 50x41 for an image of 50x40"):
        pairs(data_folder)[0]


def test_c06_missing_partners_are_listed_and_counted(tmp_path):
    root = write_folder(tmp_path / "data", count=16, size=(4, 5))
    for i in range(12):
        (root / "masks" / f"scene {i}.png").unlink()
    (root / "images" / "scene 12.jpg").unlink()
    with pytest.raises(DataError, match=r"(?s)13 files .*jpg: no mask.*and 3 more") as caught:
        pairs(root)
    assert str(caught.value).count("\n") == 11  # ten of them, and how many more
    assert "scene 12.png: no image" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [([77], "raise model.num_classes"), ([255], "255 usually marks void"), (range(60), "smoothed")],
)
def test_c07_ids_past_the_classes_are_told_with_a_hint(data_folder, wrong, hint):
    ids = np.resize(np.array(wrong, np.uint8), (40, 50))
    Image.fromarray(ids).save(data_folder / "masks" / "scene 1.png")
    with pytest.raises(DataError, match=rf"scene 1\.png: ids .*classes 0\.\.2.*{hint}"):
        pairs(data_folder, ignore_label=254)[1]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "LA"])
def test_c08_masks_in_colours_are_refused_saying_how_to_name_them(tmp_path, mode):
    path = tmp_path / ("mask.tif" if mode == "CMYK" else "mask.png")
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(DataError, match=rf"mask in {mode} colours.*classes\.json.*\"color\""):
        files.read_mask(path)


@pytest.mark.parametrize("mode", ["P", "L", "I;16"])
def test_c09_c10_palette_grey_and_16_bit_masks_hold_their_ids_exactly(tmp_path, mode):
    ids = np.array([[0, 1], [15, 255]], np.uint8)
    if mode == "I;16":
        ids = ids.astype(np.uint16) + 1000
    picture = Image.fromarray(ids)
    if mode == "P":
        picture.putpalette(labels.voc_palette().tobytes())
    picture.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as written:
        assert written.mode == mode
    np.testing.assert_array_equal(files.read_mask(tmp_path / "mask.png"), ids)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the VOC subset beside the project")
def test_c09_masks_of_voc_are_their_palette_indices():
    path = next((SHARED / "data" / "voc2012_subset" / "SegmentationClassAug").glob("*.png"))
    with Image.open(path) as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(files.read_mask(path), np.asarray(mask))


def test_c10_16_bit_ids_are_mapped_or_refused_and_16_bit_colours_refused(data_folder):
    ids = np.resize(np.array([300, 40000], np.uint16), (40, 50))
    Image.fromarray(ids).save(data_folder / "masks" / "scene 0.png")
    with pytest.raises(DataError, match="ids 300, 40000 are outside the 3 classes"):
        pairs(data_folder)[0]
    mapped = pairs(data_folder, label_map={300: 1, 40000: 2})[0]["label"]
    np.testing.assert_array_equal(mapped, np.resize([1, 2], (40, 50)))


def test_c11_jpeg_and_smoothed_masks_are_refused(data_folder):
    path = data_folder / "masks" / "scene 1.png"
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 10:40] = 200
    small_ = Image.fromarray(mask).resize((13, 11), Image.Resampling.BILINEAR)
    small_.resize((50, 40), Image.Resampling.BICUBIC).save(path)
    with pytest.raises(DataError, match="so many ids suggest a grey picture, a JPEG or smoothed"):
        pairs(data_folder, classes=2)[1]
    Image.fromarray(mask).save(path, "JPEG")
    with pytest.raises(DataError, match="JPEG compression changes ids"):
        pairs(data_folder)[1]
    path.rename(path.with_suffix(".jpg"))
    with pytest.raises(DataError, match="holds JPEG files, which cannot be masks"):
        pairs(data_folder)


def test_c12_a_crop_of_void_stays_void_and_is_no_figure(data_folder):
    void = np.full((40, 50), 255, np.uint8)
    Image.fromarray(void).save(data_folder / "masks" / "scene 1.png")
    example = pairs(data_folder)[1]
    crop = Augment((33, 33), 0.5, 2.0, 0.25, True, (127.5,) * 3)
    assert (crop(example, np.random.default_rng(0))["label"] == 255).all()
    tally = evaluate.Tally(3, 255, (3,))
    tally.add(example["label"], np.zeros((40, 50), np.uint8))
    results = tally.results(["a", "b", "c"])
    assert not tally.total.any()
    assert np.isnan(results["mean_iou"])
    assert "mean iou: –" in evaluate.table(results)


def test_c13_an_absent_class_shows_as_a_dash_and_is_left_out_of_the_mean():
    tally = evaluate.Tally(3, 255)
    tally.add(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 0]]))
    results = tally.results(["sky", "road", "unicorn"])
    assert results["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    line = next(x for x in evaluate.table(results).splitlines() if x.startswith("unicorn"))
    assert line.split()[1] == "–"


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1", "P", "LA"])
def test_c14_any_8_bit_image_is_read_as_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (6, 4), (200, 100, 50)).convert(mode).save(tmp_path / f"image.{suffix}")
    image = files.read_image(tmp_path / f"image.{suffix}")
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, files.read_image(tmp_path / f"image.{suffix}"))


def test_c14_16_bit_images_are_refused(tmp_path):
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        files.read_image(tmp_path / "deep.png")


def test_c15_image_and_mask_are_turned_upright_each_by_its_own_exif(tmp_path):
    """Stored lying on its side, 40x20 px; upright it is 20x40."""
    turned = Image.Exif()
    turned[0x0112] = 6
    ids = np.zeros((20, 40), np.uint8)
    ids[:, :10] = 1  # upright: the upper quarter
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(ids * 255).convert("RGB").save(tmp_path / "images" / "a.jpg", exif=turned)
    for mask in (Image.fromarray(ids), Image.fromarray(ids.astype(np.uint16))):
        mask.save(tmp_path / "masks" / "a.png", exif=turned)
        example = pairs(tmp_path)[0]
        assert example["image"].shape == (40, 20, 3)
        np.testing.assert_array_equal(example["label"][:10], np.ones((10, 20)))
        np.testing.assert_array_equal(example["image"][..., 0] > 127, example["label"] == 1)
    Image.fromarray(np.rot90(ids, -1)).save(tmp_path / "masks" / "a.png")  # drawn upright, no EXIF
    np.testing.assert_array_equal(pairs(tmp_path)[0]["label"], example["label"])
    Image.fromarray(ids).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match="turned upright by its EXIF orientation"):
        pairs(tmp_path)[0]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (20, 30)])
def test_c16_images_smaller_than_the_crop_are_padded(tmp_path, size):
    root = write_folder(tmp_path / "data", count=2, size=size)
    batch = next(stream(root))
    assert batch["image"].shape == (3, 33, 33, 3)
    assert set(np.unique(batch["label"])) <= {0, 1, 2, 255}
    images, examples = next(pipeline.eval_batches(pairs(root), (65, 65), np.zeros(3), 2))
    assert images.shape[1:3] == pipeline.padded_size(size, (65, 65))
    assert examples[0]["label"].shape == size
    main.run(small(root), "check_data", tmp_path / "work")
    assert (tmp_path / "work" / "check_data" / "all.png").is_file()


def test_c17_odd_names_are_read(tmp_path):
    root = write_folder(tmp_path / "data", count=4, size=(4, 5))
    names = ["straße é", "two\nlines", "日本 語", os.fsdecode(b"not utf-8 \xe9")]
    for i, name in enumerate(names):
        (root / "images" / f"scene {i}.jpg").rename(root / "images" / f"{name}.jpg")
        (root / "masks" / f"scene {i}.png").rename(root / "masks" / f"{name}.png")
    assert len(pairs(root)) == 4
    assert files.fingerprint(pairs(root))
    assert len(pairs(root, "train")) + len(pairs(root, "val")) == 4
    assert sorted(pairs(root)[i]["name"] for i in range(4)) == sorted(names)
    output.say(names[3])
    # As editors on Windows and macOS save it: a mark, other line ends, accents as two letters.
    (root / "val.txt").write_bytes("\ufeffstraße e\u0301\r\n日本 語\r\n\r\n".encode())
    assert [p.stem for p in pairs(root, "val").images] == ["straße é", "日本 語"]


@pytest.mark.parametrize("target", ["loop.jpg", "nowhere.jpg"])
def test_c17_links_to_nowhere_are_told(data_folder, target):
    (data_folder / "images" / "loop.jpg").symlink_to(target)
    with pytest.raises(DataError, match=r"loop\.jpg: no file \(a folder, or a link to nowhere\)"):
        pairs(data_folder)


def test_c18_empty_folders_and_splits_end_with_3(data_folder):
    (data_folder / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt: the list is empty") as caught:
        pairs(data_folder, "val")
    assert caught.value.exit_code == 3
    for path in [*data_folder.glob("images/*"), *data_folder.glob("masks/*")]:
        path.unlink()
    with pytest.raises(DataError, match="images: no images"):
        pairs(data_folder)


def test_c18_an_image_in_both_splits_is_pointed_out(data_folder, tmp_path, capsys):
    (data_folder / "train.txt").write_text("scene 0\nscene 1\nscene 2\n")
    (data_folder / "val.txt").write_text("scene 2\nscene 3\n")
    splits = [pairs(data_folder, name) for name in ("train", "val")]
    assert [path.stem for path in files.shared(*splits)] == ["scene 2"]
    copy = (data_folder / "images" / "scene 0.jpg").read_bytes()
    (data_folder / "images" / "scene 3.jpg").write_bytes(copy)
    main.run(
        small(data_folder, data__train_split="train", eval__split="val"), "check_data", tmp_path
    )
    said = capsys.readouterr().out
    assert "warning: 2 images of 'train' are in 'val', too" in said
    assert "scene 0.jpg" in said


def test_c18_a_folder_without_masks_is_told(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"masks: no such folder; data\.root needs images/ and"):
        folder.source(tmp_path, "all", labels.labels((), 3))
