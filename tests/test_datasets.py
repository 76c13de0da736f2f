"""The published datasets in miniature, in their official layouts: ids, splits, names, voids."""

import json
import pickle

import miniatures
import numpy as np
import pytest
from conftest import ROOT, SHARED, pairs, write_folder
from miniatures import ids_of, mask, picture, same

from deeplab_jax import config as configuration
from deeplab_jax import main
from deeplab_jax.data import datasets, files, image_files, pipeline
from deeplab_jax.data.balance import Picked
from deeplab_jax.data.synthetic import Synthetic
from deeplab_jax.errors import ConfigError, DataError


def test_camvid(tmp_path):
    miniatures.camvid(tmp_path)
    source = datasets.source("camvid", tmp_path, "trainval", 11, 255)
    names = ["train_0", "train_1", "train_2", "val_0", "val_1"]
    assert [source[i]["name"] for i in range(len(source))] == names
    assert ids_of(source) == {*range(11), 255}
    np.testing.assert_array_equal(source[0]["label"].ravel()[:12], [*range(11), 255])
    assert datasets.remark("camvid", "train", 3).startswith("camvid train: 3 images; the official")
    assert datasets.remark("camvid", "train", 367) == ""


def test_records_hold_what_the_files_hold(tmp_path):
    from deeplab_jax.data import records

    miniatures.camvid(tmp_path)
    config = configuration.load(f"{ROOT}/configs/v3plus.py:camvid", {"data.records": True})
    config.data.root = str(tmp_path)
    plain = datasets.source("camvid", tmp_path, "trainval", 11, 255)
    packed = pipeline.source(config.data, "trainval", 11)
    same(plain, packed)
    was = files.fingerprint(packed)
    for folder in ("train", "trainannot"):  # prepared: they are not needed any more
        for path in (tmp_path / folder).iterdir():
            path.unlink()
    again = pipeline.source(config.data, "trainval", 11)
    assert len(again) == 5
    assert files.fingerprint(again) == was
    assert files.fingerprint(pipeline.source(config.data, "val", 11)) != was
    with pytest.raises(DataError, match=r"no images of camvid's split 'train'"):
        records.source("camvid", tmp_path, "train", 11, 255)
    with pytest.raises(DataError, match=r"did you mean 'trainval'"):
        records.source("camvid", tmp_path, "trainvals", 11, 255)
    picture(tmp_path / "night" / "a.png")
    with pytest.raises(DataError, match=r"published splits of camvid .* not 'night'"):
        records.source("camvid", tmp_path, "night", 11, 255)


def test_records_of_other_sizes_are_told_as_files_are(tmp_path):
    from deeplab_jax.data import records

    picture(tmp_path / "val" / "a.png")
    mask(tmp_path / "valannot" / "a.png", [0], size=(6, 4))
    for read in (datasets.source, records.source):
        with pytest.raises(DataError, match="mask of 4x6 for an image of 6x4"):
            read("camvid", tmp_path, "val", 11, 255)[0]


def test_records_of_train_ids_are_not_mapped_again(tmp_path):
    from deeplab_jax.data import records

    miniatures.cityscapes(tmp_path, "labelTrainIds", [255, 7, 18])
    same(
        datasets.source("cityscapes", tmp_path, "val", 19, 255),
        records.source("cityscapes", tmp_path, "val", 19, 255),
    )


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_of_label_ids_or_train_ids(tmp_path, kind):
    raw = [0, 1, 7, 8, 10, 33, 29]
    wanted = [255, 255, 0, 1, 255, 18, 255]
    miniatures.cityscapes(tmp_path, kind, raw if kind == "labelIds" else wanted)
    sizes = {"train": 2, "val": 2, "trainval": 4, "test": 2, "train_coarse": 4}
    for split, size in (sizes | {"trainval_coarse": 6}).items():
        source = datasets.source("cityscapes", tmp_path, split, 19, 255)
        assert len(source) == size
        np.testing.assert_array_equal(source[0]["label"].ravel()[:7], wanted)
    masks = datasets.source("cityscapes", tmp_path, "train_coarse", 19, 255).masks
    assert all("gtCoarse" in str(path) for path in masks)


def test_all_label_ids_of_cityscapes_go_where_its_scripts_send_them():
    dataset = datasets.DATASETS["cityscapes"]
    assert len(dataset.names) == len(dataset.palette) == len(dataset.raw_ids) == 19
    found = datasets.table({r: i for i, r in enumerate(dataset.raw_ids)}, 255, void=True)
    evaluated = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    assert {raw for raw in range(256) if found[raw] != 255} == evaluated
    assert found[26] == dataset.names.index("car")
    assert dataset.palette[dataset.names.index("car")] == (0, 0, 142)


def test_ade20k(tmp_path):
    miniatures.ade20k(tmp_path)
    assert len(datasets.source("ade20k", tmp_path, "val", 150, 255)) == 1
    source = datasets.source("ade20k", tmp_path, "train", 150, 255)
    np.testing.assert_array_equal(source[1]["label"].ravel()[:3], [255, 0, 149])
    config = configuration.load(f"{ROOT}/configs/v3plus.py:ade20k")
    config.data.root = str(tmp_path)
    names = pipeline.class_labels(config.data, 150).names
    assert (names[0], names[149]) == ("thing 1", "thing 150")


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_what_is_missing_is_told(name, tmp_path):
    for root in ("", tmp_path / "nowhere"):
        with pytest.raises(DataError, match="no such folder; get "):
            datasets.source(name, root, "train", 19, 255)
    if name != "voc":  # whose lists are named by another message
        with pytest.raises(DataError, match=r"no images of .* 'trian'.*did you mean 'train'"):
            datasets.source(name, tmp_path, "trian", 19, 255)
    with pytest.raises(DataError, match="get "):
        datasets.source(name, tmp_path, "train", 19, 255)
    if not datasets.DATASETS[name].names:
        with pytest.raises(DataError, match="no such file or folder; get "):
            datasets.names_of(name, tmp_path)


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_every_miniature_is_read_and_packed_alike(name, tmp_path):
    from deeplab_jax.data import records

    write, split, count = miniatures.WRITERS[name]
    write(tmp_path)
    config = configuration.load(f"{ROOT}/configs/fcn.py:{name}")
    read = (name, tmp_path, split, config.model.num_classes, 255)
    for channels in datasets.channels_of(name):
        source = datasets.source(*read, channels=channels)
        assert len(source) == count
        same(source, pickle.loads(pickle.dumps(source)))  # as it gets into another process
        packed = records.source(*read, channels=channels)
        same(source, packed)
        assert files.fingerprint(packed) != files.fingerprint(source)
    remark = datasets.remark(name, split, count)
    assert str(datasets.DATASETS[name].splits[split]) in remark
    names = datasets.names_of(name, tmp_path)
    assert len(set(names)) == len(names) == config.model.num_classes


@pytest.mark.parametrize("name", datasets.DATASETS)
@pytest.mark.parametrize("file", ["v1", "v2", "v3", "v3plus", "fcn"])
def test_every_paper_has_a_preset_for_every_dataset(file, name):
    config = configuration.load(f"{ROOT}/configs/{file}.py:{name}")
    configuration.check(config)
    assert config.data.name == name
    of_files = {"ade20k": 150, "pascal_context": 60, "pascal_context_59": 59, "coco_stuff": 171}
    assert config.model.num_classes == (len(datasets.DATASETS[name].names) or of_files[name])
    assert config.data.train_split in datasets.DATASETS[name].splits
    assert config.eval.split in datasets.DATASETS[name].splits


def test_a_folder_with_a_label_map(tmp_path):
    root = write_folder(tmp_path / "data")
    source = pairs(root, classes=2, label_map={0: 255, 1: 0, 2: 1})
    plain = pairs(root)
    was, now = plain[0]["label"], source[0]["label"]
    for raw, label in {0: 255, 1: 0, 2: 1, 255: 255}.items():
        assert (now[was == raw] == label).all()
    lacking = pairs(root, classes=2, label_map={0: 0, 1: 1})
    with pytest.raises(DataError, match=r"scene 0.png: ids 2 are not in data.label_map"):
        lacking[0]


def test_ids_of_16_bits_are_mapped_too():
    table = datasets.table({1000: 0, 4000: 1}, 255)
    stored = np.array([[1000, 4000, 255]], np.int32)
    np.testing.assert_array_equal(files.mapped(stored, table, "x"), [[0, 1, 255]])
    for wrong in (-1, 7, 4001):
        with pytest.raises(DataError, match=f"ids {wrong} are not"):
            files.mapped(np.array([[wrong]], np.int32), table, "x")


@pytest.mark.parametrize("label_map", [{0: 7}, {-1: 0}, {"road": 0}, (1, 2)])
def test_a_label_map_that_makes_no_sense_is_refused(label_map):
    config = configuration.load(
        f"{ROOT}/configs/v3plus.py:mobilenet_v2,folder",
        {"model.num_classes": 3, "data.label_map": label_map},
    )
    with pytest.raises(ConfigError, match="label_map"):
        configuration.check(config)


def test_check_data_sees_mapped_ids_and_the_map_is_kept_as_json(tmp_path, capsys):
    root = write_folder(tmp_path / "data")
    config = configuration.load(
        f"{ROOT}/configs/v3plus.py:mobilenet_v2,folder",
        {
            "data.root": str(root),
            "data.label_map": {0: 255, 1: 0, 2: 1},
            "model.num_classes": 2,
        },
    )
    main.run(config, "check_data", tmp_path / "work")
    said = capsys.readouterr().out
    assert "3 examples, 0 of them bad" in said
    assert "class_1" in said
    assert "class_2" not in said
    saved = json.loads(configuration.to_json(config))
    assert saved["data"]["label_map"] == {"0": 255, "1": 0, "2": 1}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs CamVid beside the project")
def test_real_camvid_has_the_official_counts_and_its_ids():
    root = SHARED / "data" / "camvid"
    seen = set()
    for split, count in datasets.DATASETS["camvid"].splits.items():
        source = datasets.source("camvid", root, split, 11, 255)
        assert len(source) == count
        seen |= ids_of(source) | ids_of(source, count - 1)
        assert source[0]["image"].shape == (360, 480, 3)
    raw = image_files.read_mask(root / "testannot" / "0001TP_008550.png")
    label = datasets.source("camvid", root, "test", 11, 255)
    index = [path.stem for path in label.images].index("0001TP_008550")
    np.testing.assert_array_equal(label[index]["label"], np.where(raw == 11, 255, raw))
    assert seen == {*range(11), 255}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real subsets beside the project")
@pytest.mark.parametrize(("name", "folder"), [("voc", "voc2012_subset"), ("camvid", "camvid")])
def test_real_subsets_are_prepared_and_read_back_pixel_for_pixel(name, folder, tmp_path):
    from deeplab_jax.data import records

    (tmp_path / "own").mkdir()
    for entry in (SHARED / "data" / folder).iterdir():
        (tmp_path / "own" / entry.name).symlink_to(entry)
    classes = len(datasets.DATASETS[name].names)
    same(
        datasets.source(name, tmp_path / "own", "val", classes, 255),
        records.source(name, tmp_path / "own", "val", classes, 255),
    )


def test_a_fingerprint_tells_other_data_and_not_another_place(tmp_path):
    one, two = (write_folder(tmp_path / name) for name in ("one", "two"))

    def of(root, split="all", label_map=None):
        return files.fingerprint(pairs(root, split, label_map=label_map))

    was = of(one)
    assert of(two) == was
    assert of(one, "val") != was
    assert of(one, label_map={0: 1, 1: 0, 2: 2}) != was
    for name in ("images/scene 1.jpg", "masks/scene 1.png"):
        (two / name).rename(two / name.replace("1", "9"))
    assert of(two) != was
    for settings in ({"seed": 1}, {"depth": True}, {"split": "val"}):
        assert files.fingerprint(Synthetic(**settings)) != files.fingerprint(Synthetic())
    picked = [files.fingerprint(Picked(Synthetic(), indices)) for indices in ((0, 1), (0, 1, 1))]
    assert len({*picked, files.fingerprint(Synthetic())}) == 3
