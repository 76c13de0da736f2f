"""Bad data, which is named or handled, and never learned from in silence."""

import json
import os
import re

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import command, run
from conftest import SHARED, pairs, write_folder
from PIL import Image
from test_data import DATA, stream
from test_train import batch as labelled_batch
from test_train import small, step_and_state

from deeplab_jax import evaluate, losses, main, output, runtime
from deeplab_jax.data import balance, files, folder, image_files, inputs, labels, pipeline
from deeplab_jax.data.skipping import Skipping, unreadable
from deeplab_jax.data.transforms import Augment
from deeplab_jax.errors import DataError, UnreadableError

LOSS = common.base().loss.to_dict()


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


UNREADABLE = {
    "truncated JPEG": ("images/scene 1.jpg", halved, "damaged or truncated image"),
    "truncated mask": ("masks/scene 1.png", halved, "damaged or truncated mask"),
    "no bytes": ("images/scene 1.jpg", lambda path: path.write_bytes(b""), "the file has 0 bytes"),
    "text": ("masks/scene 1.png", lambda path: path.write_text("road"), "not a readable mask"),
}


@pytest.fixture(params=UNREADABLE)
def damaged(request, data_folder):
    """(folder, words): one of four examples cannot be read."""
    name, damage, words = UNREADABLE[request.param]
    damage(data_folder / name)
    return data_folder, rf"(?s){name.split('/')[1]}: .*{words}.*replace or remove it"


@pytest.mark.fault("C1", "C2", "C3", "C4")
def test_a_file_that_cannot_be_read_is_named(damaged, tmp_path):
    root, words = damaged
    with pytest.raises(UnreadableError, match=words) as caught:
        pairs(root)[1]
    assert caught.value.exit_code == 3
    batches = stream(root)
    with pytest.raises(DataError, match=words):
        [next(batches) for _ in range(4)]
    with pytest.raises(DataError, match=words):
        main.run(small(root), "check_data", tmp_path)


@pytest.mark.fault("C1", "C2", "C3", "C4")
def test_files_that_cannot_be_read_are_skipped_and_the_stream_is_the_same_wherever_it_goes_on(
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


@pytest.mark.fault("C1")
def test_a_skipped_file_is_left_out_of_the_check_that_goes_on(data_folder, tmp_path, capsys):
    halved(data_folder / "images" / "scene 1.jpg")
    main.run(small(data_folder, data__on_error="skip"), "check_data", tmp_path)
    said = capsys.readouterr().out
    assert "4 examples, 1 of them bad" in said
    assert "1 will be passed over:" in said


@pytest.mark.fault("C3")
def test_too_many_to_skip_is_no_accident(tmp_path):
    root = write_folder(tmp_path / "data", count=12, size=(4, 5))
    for path in (root / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="11 of 12 examples cannot be read, too many"):
        Skipping(pairs(root))[0]


@pytest.mark.fault("C1", "C2", "C3", "C4")
def test_a_training_ends_with_3_and_one_sentence(damaged, tmp_path):
    root, words = damaged
    done = run(command(root, tmp_path / "w"))
    assert done.returncode == 3, done.stderr
    assert re.search(words, done.stderr)
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.fault("C1", "C2", "C3", "C4")
def test_a_training_that_skips_goes_on_and_counts(tmp_path, capsys):
    root = write_folder(tmp_path / "data", count=12)
    for i, (name, damage, _) in enumerate(UNREADABLE.values()):
        damage(root / name.replace("1", str(i)))
    # Two epochs: each file was asked for.
    config = small(root, data__on_error="skip", train__steps=6, train__checkpoint_every=6)
    figures = main.run(config, "train", tmp_path / "w")
    said = capsys.readouterr().out
    assert said.count("skipped: ") == 2 * 4  # of training, and of evaluation
    assert "4 training examples could not be read; others stood in for them" in said
    assert "4 of 12 images could not be read and are left out" in said
    assert figures["left_out"] == 4
    assert 0 <= figures["mean_iou"] <= 1


@pytest.mark.fault("C5")
def test_of_other_sizes_both_are_told(data_folder):
    Image.new("L", (50, 41)).save(data_folder / "masks" / "scene 0.png")
    with pytest.raises(DataError, match=r"scene 0\.png: mask of 50x41 for an image of 50x40"):
        pairs(data_folder)[0]


@pytest.mark.fault("C6")
def test_missing_partners_are_listed_and_counted(tmp_path):
    root = write_folder(tmp_path / "data", count=16, size=(4, 5))
    for i in range(12):
        (root / "masks" / f"scene {i}.png").unlink()
    (root / "images" / "scene 12.jpg").unlink()
    with pytest.raises(DataError, match=r"(?s)13 files .*jpg: no mask.*and 3 more") as caught:
        pairs(root)
    assert str(caught.value).count("\n") == 11  # ten of them, and how many more
    assert "scene 12.png: no image" in str(caught.value)


@pytest.mark.fault("C7")
@pytest.mark.parametrize(
    ("wrong", "hint"),
    [([77], "raise model.num_classes"), ([255], "255 usually marks void"), (range(60), "smoothed")],
)
def test_ids_past_the_classes_are_told_with_a_hint(data_folder, wrong, hint):
    ids = np.resize(np.array(wrong, np.uint8), (40, 50))
    Image.fromarray(ids).save(data_folder / "masks" / "scene 1.png")
    with pytest.raises(DataError, match=rf"scene 1\.png: ids .*classes 0\.\.2.*{hint}"):
        pairs(data_folder, ignore_label=254)[1]


@pytest.mark.fault("C8")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "LA"])
def test_masks_in_colours_are_refused_saying_how_to_name_them(tmp_path, mode):
    path = tmp_path / ("mask.tif" if mode == "CMYK" else "mask.png")
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(DataError, match=rf"mask in {mode} colours.*classes\.json.*\"color\""):
        image_files.read_mask(path)


C9, C10 = pytest.mark.fault("C9"), pytest.mark.fault("C10")


@pytest.mark.parametrize(
    "mode", [pytest.param("P", marks=C9), "L", pytest.param("I;16", marks=C10)]
)
def test_palette_grey_and_16_bit_masks_hold_their_ids_exactly(tmp_path, mode):
    ids = np.array([[0, 1], [15, 255]], np.uint8)
    if mode == "I;16":
        ids = ids.astype(np.uint16) + 1000
    picture = Image.fromarray(ids)
    if mode == "P":
        picture.putpalette(labels.voc_palette().tobytes())
    picture.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as written:
        assert written.mode == mode
    np.testing.assert_array_equal(image_files.read_mask(tmp_path / "mask.png"), ids)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the VOC subset beside the project")
def test_masks_of_voc_are_their_palette_indices():
    path = next((SHARED / "data" / "voc2012_subset" / "SegmentationClassAug").glob("*.png"))
    with Image.open(path) as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(image_files.read_mask(path), np.asarray(mask))


@pytest.mark.fault("C10")
def test_16_bit_ids_are_mapped_or_refused(data_folder):
    ids = np.resize(np.array([300, 40000], np.uint16), (40, 50))
    Image.fromarray(ids).save(data_folder / "masks" / "scene 0.png")
    with pytest.raises(DataError, match="ids 300, 40000 are outside the 3 classes"):
        pairs(data_folder)[0]
    mapped = pairs(data_folder, label_map={300: 1, 40000: 2})[0]["label"]
    np.testing.assert_array_equal(mapped, np.resize([1, 2], (40, 50)))


@pytest.mark.fault("C11")
def test_jpeg_and_smoothed_masks_are_refused(data_folder):
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


@pytest.mark.fault("C12")
def test_a_crop_of_void_stays_void_and_is_no_figure(data_folder):
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


@pytest.mark.fault("C12")
def test_void_adds_nothing_to_the_loss_nor_to_its_gradient():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 5, 6, 3)), jnp.float32)
    label = rng.integers(0, 3, (2, 17, 21)).astype(np.int32)
    label[1] = 255

    def loss(logits, label):
        return losses.training_loss(logits, label, LOSS, 0)

    value, gradient = jax.value_and_grad(loss)(logits, label)
    alone, of_one = jax.value_and_grad(loss)(logits[:1], label[:1])
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    np.testing.assert_allclose(gradient[:1], of_one, atol=1e-8)
    assert not np.asarray(gradient[1]).any()
    value, gradient = jax.value_and_grad(loss)(logits, np.full_like(label, 255))
    assert value == 0
    assert not np.asarray(gradient).any()


@pytest.mark.fault("C12")
def test_a_training_step_on_void_alone_is_finite(tmp_path):
    step, state, mesh = step_and_state(small(tmp_path))
    void = labelled_batch() | {"label": np.full((4, 49, 49), 255, np.int32)}
    state, figures = step(state, runtime.shard_batch(void, mesh))
    assert float(figures["loss"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


@pytest.mark.fault("C13")
def test_an_absent_class_shows_as_a_dash_and_is_left_out_of_the_mean():
    tally = evaluate.Tally(3, 255)
    tally.add(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 0]]))
    results = tally.results(["sky", "road", "unicorn"])
    assert results["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    line = next(x for x in evaluate.table(results).splitlines() if x.startswith("unicorn"))
    assert line.split()[1] == "–"


@pytest.mark.fault("C14")
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1", "P", "LA"])
def test_any_8_bit_image_is_read_as_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (6, 4), (200, 100, 50)).convert(mode).save(tmp_path / f"image.{suffix}")
    image = image_files.read_image(tmp_path / f"image.{suffix}")
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, image_files.read_image(tmp_path / f"image.{suffix}"))


@pytest.mark.fault("C14")
def test_16_bit_images_are_refused(tmp_path):
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        image_files.read_image(tmp_path / "deep.png")


@pytest.mark.fault("C15")
def test_image_and_mask_are_turned_upright_each_by_its_own_exif(tmp_path):
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


@pytest.mark.fault("C16")
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (20, 30)])
def test_images_smaller_than_the_crop_are_padded(tmp_path, size):
    root = write_folder(tmp_path / "data", count=2, size=size)
    batch = next(stream(root))
    assert batch["image"].shape == (3, 33, 33, 3)
    assert set(np.unique(batch["label"])) <= {0, 1, 2, 255}
    images, examples = next(pipeline.eval_batches(pairs(root), (65, 65), np.zeros(3), 2))
    assert images.shape[1:3] == pipeline.padded_size(size, (65, 65))
    assert examples[0]["label"].shape == size
    main.run(small(root), "check_data", tmp_path / "work")
    assert (tmp_path / "work" / "check_data" / "all.png").is_file()


@pytest.mark.fault("C12", "C13", "C14", "C15", "C16")
def test_a_training_on_images_of_all_kinds(tmp_path, capsys):
    """Sizes, modes, EXIF and void together; class 2 is not in the evaluation split."""
    root = tmp_path / "data"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    rng, turned = np.random.default_rng(0), Image.Exif()
    turned[0x0112] = 6
    modes = ("L", "RGBA", "CMYK", "1", "P")
    sizes = [(1, 1), (1, 5000), (5000, 1), (20, 30), (60, 70)] + [(40, 50)] * len(modes)
    for i, size in enumerate(sizes):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8))
        mode = ("RGB",) * 5 + modes
        suffix = "jpg" if mode[i] == "CMYK" else "png"
        image.convert(mode[i]).save(root / "images" / f"{i}.{suffix}", exif=turned)
        mask = rng.integers(0, 3 if i < 5 else 2, size).astype(np.uint8)
        Image.fromarray(mask if i != 3 else np.full_like(mask, 255)).save(
            root / "masks" / f"{i}.png", exif=turned
        )
    (root / "train.txt").write_text("\n".join(map(str, range(10))))
    (root / "val.txt").write_text("5\n6\n7\n8\n9\n")
    config = small(
        root,
        data__train_split="train",
        eval__split="val",
        train__steps=6,
        train__checkpoint_every=6,
        log_every=3,
    )
    figures = main.run(config, "train", tmp_path / "w")
    assert np.isnan(figures["iou"]["class_2"])
    found = [v for k, v in figures["iou"].items() if k != "class_2"]
    assert figures["mean_iou"] == pytest.approx(np.mean(found))
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("class_2"))
    assert line.split()[1] == "–"
    logged = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(x["loss"]) for x in logged if "loss" in x)


@pytest.mark.fault("C17")
def test_odd_names_are_read(tmp_path):
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


@pytest.mark.fault("C17")
@pytest.mark.parametrize("target", ["loop.jpg", "nowhere.jpg"])
def test_links_to_nowhere_are_told(data_folder, target):
    (data_folder / "images" / "loop.jpg").symlink_to(target)
    with pytest.raises(DataError, match=r"loop\.jpg: no file \(a folder, or a link to nowhere\)"):
        pairs(data_folder)


@pytest.mark.fault("C17")
def test_a_folder_that_holds_itself_is_searched_once(data_folder):
    (data_folder / "images" / "again").symlink_to(data_folder / "images")
    found = inputs.find_images(str(data_folder / "images"))
    assert len({path.resolve() for path in found}) == 4
    assert len(found) <= 8
    assert len(pairs(data_folder)) == 4


@pytest.mark.fault("C18")
def test_empty_folders_and_splits_end_with_3(data_folder):
    (data_folder / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt: the list is empty") as caught:
        pairs(data_folder, "val")
    assert caught.value.exit_code == 3
    for path in [*data_folder.glob("images/*"), *data_folder.glob("masks/*")]:
        path.unlink()
    with pytest.raises(DataError, match="images: no images"):
        pairs(data_folder)


@pytest.mark.fault("C18")
def test_an_image_in_both_splits_is_pointed_out(data_folder, tmp_path, capsys):
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
    both = {"data__train_split": "train", "eval__split": "val"}
    main.run(small(data_folder, train__steps=1, **both), "train", tmp_path / "w")
    assert "warning: 1 images of 'train' are in 'val', too" in capsys.readouterr().out


@pytest.mark.fault("C18")
def test_a_folder_without_masks_is_told(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"masks: no such folder; data\.root needs images/ and"):
        folder.source(tmp_path, "all", labels.labels((), 3))
