"""Datasets whose masks are MATLAB or JSON files: what becomes of them, and what is told."""

import subprocess
import sys

import h5py
import miniatures
import numpy as np
import pytest
from conftest import ROOT
from miniatures import ids_of, mat, picture, text

from deeplab_jax import config as configuration
from deeplab_jax import main
from deeplab_jax.data import datasets, files, pipeline
from deeplab_jax.data.datasets import nyudv2, prepared
from deeplab_jax.errors import ConfigError, DataError


def first_labels(source, index, count):
    return source[index]["label"].ravel()[:count].tolist()


# --- VOC and SBD ---------------------------------------------------------------------------------


def test_train_aug_is_sbd_and_vocs_train_less_its_val(tmp_path):
    miniatures.voc(tmp_path)
    source = datasets.source("voc", tmp_path, "train_aug", 21, 255)
    assert [source[i]["name"] for i in range(len(source))] == ["a", "b", "e"]
    assert ids_of(source, 1) == {0, 1, 255}  # in both: VOC's own mask
    assert ids_of(source, 2) == {0, 20}  # SBD's
    assert datasets.remark("voc", "train_aug", 3).endswith("the official release has 10582")
    assert len(datasets.source("voc", tmp_path, "trainval", 21, 255)) == 4


def test_sbd_may_lie_in_dataset_and_ready_made_masks_are_taken_as_they_are(tmp_path):
    miniatures.voc(tmp_path)
    (tmp_path / "benchmark_RELEASE" / "dataset").rename(tmp_path / "dataset")
    assert len(datasets.source("voc", tmp_path, "train_aug", 21, 255)) == 3
    miniatures.mask(tmp_path / "SegmentationClassAug" / "e.png", [7])
    text(tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt", ["e"])
    assert ids_of(datasets.source("voc", tmp_path, "train_aug", 21, 255)) == {7}


def test_a_list_of_train_aug_may_go_with_masks_in_segmentation_class(tmp_path):
    miniatures.voc(tmp_path)
    (tmp_path / "benchmark_RELEASE").rename(tmp_path / "elsewhere")
    text(tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt", ["b"])
    assert ids_of(datasets.source("voc", tmp_path, "train_aug", 21, 255)) == {0, 1, 255}


def test_voc_without_sbd_says_what_to_get_and_its_test_split_has_no_masks(tmp_path):
    miniatures.voc(tmp_path)
    with pytest.raises(DataError, match="masks of VOC's test split are not public"):
        datasets.source("voc", tmp_path, "test", 21, 255)
    (tmp_path / "benchmark_RELEASE").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"SegmentationClassAug: no such .* benchmark\.tgz"):
        datasets.source("voc", tmp_path, "train_aug", 21, 255)


# --- the mechanism -------------------------------------------------------------------------------


def test_masks_are_written_once_and_a_stopped_run_goes_on(tmp_path, capsys):
    miniatures.voc(tmp_path)
    for name in ("f", "g"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    text(sbd / "train.txt", "befg")
    mat(sbd / "cls" / "f.mat", GTcls={"Segmentation": miniatures.ids([5])})
    (sbd / "cls" / "g.mat").write_bytes((sbd / "cls" / "f.mat").read_bytes()[:150])
    with pytest.raises(DataError, match=r"1 of 3 masks of SBD.*\n.*g\.mat: damaged or no MATLAB"):
        datasets.source("voc", tmp_path, "train_aug", 21, 255)
    written = tmp_path / "prepared" / "voc" / "SBD"
    assert sorted(path.name for path in written.iterdir()) == ["e.png", "f.png"]
    before = (written / "e.png").stat().st_mtime_ns
    mat(sbd / "cls" / "g.mat", GTcls={"Segmentation": miniatures.ids([6])})
    capsys.readouterr()
    source = datasets.source("voc", tmp_path, "train_aug", 21, 255)
    assert "writing 1 masks of SBD" in capsys.readouterr().out
    assert [ids_of(source, i) for i in (3, 4)] == [{5}, {6}]
    assert (written / "e.png").stat().st_mtime_ns == before
    for path in (sbd / "cls").iterdir():  # not needed any more
        path.unlink()
    datasets.source("voc", tmp_path, "train_aug", 21, 255)
    assert not capsys.readouterr().out


def test_a_root_that_cannot_be_written_is_told(tmp_path):
    miniatures.voc(tmp_path)
    (tmp_path / "prepared").write_text("a file where the folder would be")
    with pytest.raises(DataError, match=r"prepared.*cannot be written .*make data\.root writable"):
        datasets.source("voc", tmp_path, "train_aug", 21, 255)


def test_what_is_no_label_map_is_told(tmp_path):
    path = tmp_path / "a.mat"
    mat(path, S=np.ones((2, 3, 4)), T=np.full((2, 2), 0.5), U={"V": 1})
    for keys in (("S",), ("T",), ("U", "V")):
        with pytest.raises(DataError, match=rf"a\.mat: {'.'.join(keys)} is no label map"):
            prepared.read_mat_ids(path, *keys)
    for keys in (("W",), ("U", "W"), ("S", "W")):
        with pytest.raises(DataError, match=rf"a\.mat: has no {'.'.join(keys)};"):
            prepared.read_mat(path, *keys)
    with pytest.raises(DataError, match=r"b\.mat: no such file"):
        prepared.read_mat(tmp_path / "b.mat", "S")
    (tmp_path / "c.mat").write_bytes(b"no MATLAB file at all" * 20)
    with pytest.raises(DataError, match=r"c\.mat: damaged"):
        prepared.read_mat(tmp_path / "c.mat", "S")
    with pytest.raises(DataError, match="ids 0 to 9, but the dataset has 0 to 4"):
        prepared.translated(np.array([[0, 9]]), np.arange(5), path)


# --- PASCAL-Context and -Person-Part -------------------------------------------------------------


def test_the_459_classes_of_pascal_context_become_59_by_name(tmp_path):
    miniatures.pascal_context(tmp_path)
    # aeroplane, bedclothes, cloth, pottedplant, table, wood, and two of the others
    wanted = [1, 4, 5, 2, 3, 59, 0, 0]
    source = datasets.source("pascal_context", tmp_path, "val", 60, 255)
    assert first_labels(source, 0, 8) == wanted
    without = datasets.source("pascal_context_59", tmp_path, "val", 59, 255)
    assert first_labels(without, 0, 8) == [label - 1 if label else 255 for label in wanted]
    names = datasets.names_of("pascal_context", tmp_path)
    assert (names[0], names[1], names[59]) == ("background", "aeroplane", "wood")
    assert names[1:] == datasets.names_of("pascal_context_59", tmp_path)


def test_lists_of_pascal_context_that_do_not_fit_are_told(tmp_path):
    miniatures.pascal_context(tmp_path)
    lines = (tmp_path / "labels.txt").read_text().splitlines()
    text(tmp_path / "labels.txt", [line for line in lines if "table" not in line])
    with pytest.raises(DataError, match=r"labels\.txt: has no class 'table' of 59_labels"):
        datasets.source("pascal_context", tmp_path, "val", 60, 255)
    text(tmp_path / "59_labels.txt", ["1: aeroplane", "2: bicycle"])
    with pytest.raises(DataError, match="does not name classes 1 to 59"):
        datasets.names_of("pascal_context", tmp_path)
    text(tmp_path / "59_labels.txt", ["aeroplane"])
    with pytest.raises(DataError, match="line 'aeroplane' is not 'id: name'"):
        datasets.names_of("pascal_context", tmp_path)


@pytest.mark.parametrize("several", [True, False])
def test_parts_of_persons_are_merged_and_others_are_background(tmp_path, several):
    miniatures.person_part(tmp_path, several)
    source = datasets.source("person_part", tmp_path, "train", 7, 255)
    # an eyebrow (head), the neck over it and beside it (torso), a foot (lower legs), no cat
    assert first_labels(source, 0, 6) == [1, 2, 2, 6, 0, 0]
    assert [source[i]["name"] for i in range(2)] == ["a", "b"]
    names = datasets.names_of("person_part", tmp_path)
    assert names[1:] == tuple("head,torso,upper arms,lower arms,upper legs,lower legs".split(","))


def test_released_masks_of_person_parts_are_taken_as_they_are(tmp_path):
    miniatures.person_part(tmp_path)
    for name in "ab":
        miniatures.mask(tmp_path / "pascal_person_part/pascal_person_part_gt" / f"{name}.png", [4])
    assert ids_of(datasets.source("person_part", tmp_path, "train", 7, 255)) == {4}
    assert not (tmp_path / "prepared").exists()


def test_parts_that_are_unknown_or_lacking_are_told(tmp_path):
    miniatures.person_part(tmp_path)
    annotation = miniatures.person_annotation()
    annotation["objects"][2]["parts"][1]["part_name"] = "tail"
    mat(tmp_path / "Annotations_Part" / "a.mat", anno=annotation)
    del annotation["objects"][2]["parts"]
    mat(tmp_path / "Annotations_Part" / "b.mat", anno=annotation | {"objects": []})
    with pytest.raises(DataError, match=r"2 of 2 (?s:.*)a\.mat: .*'tail'(?s:.*)b\.mat: has no obj"):
        datasets.source("person_part", tmp_path, "train", 7, 255)


# --- SIFT Flow -----------------------------------------------------------------------------------


def test_sift_flow_has_classes_and_geometry(tmp_path):
    miniatures.sift_flow(tmp_path)
    source = datasets.source("sift_flow", tmp_path, "train", 33, 255)
    assert [source[i]["name"] for i in range(len(source))] == ["coast_a", "street_c"]
    assert first_labels(source, 0, 3) == [255, 0, 32]
    assert source[0]["label_geometry"].ravel()[:4].tolist() == [255, 255, 0, 2]
    assert source[0]["label_geometry"].dtype == np.uint8
    test = datasets.source("sift_flow", tmp_path, "test", 33, 255)
    assert [test[i]["name"] for i in range(len(test))] == ["coast_b"]
    was = files.fingerprint(source)
    mask = tmp_path / "prepared" / "sift_flow" / "GeoLabels" / "coast_a.png"
    mask.write_bytes(mask.read_bytes() + b"more")
    assert files.fingerprint(source) != was
    assert len(datasets.names_of("sift_flow", tmp_path)) == 33


def test_both_maps_are_augmented_alike(tmp_path):
    miniatures.sift_flow(tmp_path)
    config = configuration.load(f"{ROOT}/configs/fcn.py:vgg16_16s,sift_flow")
    config.data.root = str(tmp_path)
    config.data.crop_size = (8, 8)
    source = pipeline.source(config.data, "train", 33)
    batch = next(pipeline.train_iterator(source, config.data, 0, 2))
    assert batch["label_geometry"].shape == batch["label"].shape == (2, 8, 8)
    assert (batch["label_geometry"][:, 4:] == 255).all()


# --- COCO ----------------------------------------------------------------------------------------


def test_coco_has_vocs_classes_in_images_with_enough_of_them(tmp_path, capsys):
    miniatures.coco(tmp_path)
    source = datasets.source("coco", tmp_path, "train", 21, 255)
    assert [source[i]["name"] for i in range(len(source))] == [f"{3:012d}", f"{7:012d}"]
    assert ids_of(source, 0) == {20}  # a tv on top of a crowd, which would be void
    dog, person = 12, 15
    label = source[1]["label"]
    assert (label[10, 10], label[30, 30]) == (person, dog)
    assert len(datasets.source("coco", tmp_path, "trainval", 21, 255)) == 3
    told = datasets.remark("coco", "train", 2)
    assert told.startswith(
        "coco train: 2 of the release's 118287 images, those with more than 1000"
    )
    capsys.readouterr()
    (tmp_path / "annotations" / "instances_train2017.json").unlink()  # not needed any more
    again = datasets.source("coco", tmp_path, "train", 21, 255)
    assert files.fingerprint(again) == files.fingerprint(source)
    assert not capsys.readouterr().out
    with pytest.raises(DataError, match=r"train2014: no such file or folder; get train2017\.zip"):
        datasets.source("coco", tmp_path, "train2014", 21, 255)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"images": [{}], "annotations": []}',
        '{"images": [], "annotations": [{"category_id": 1, "image_id": 1}]}',
    ],
)
def test_a_damaged_annotations_file_is_named(content, tmp_path):
    miniatures.coco(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(content)
    with pytest.raises(DataError, match=r"instances_val2017\.json: damaged or no COCO"):
        datasets.source("coco", tmp_path, "val", 21, 255)


def test_coco_stuff_skips_the_ids_that_no_image_has(tmp_path):
    miniatures.coco_stuff(tmp_path)
    source = datasets.source("coco_stuff", tmp_path, "train", 171, 255)
    assert first_labels(source, 1, 5) == [0, 10, 11, 170, 255]
    assert len(datasets.source("coco_stuff", tmp_path, "val", 171, 255)) == 1
    names = datasets.names_of("coco_stuff", tmp_path)
    assert [names[i] for i in (0, 10, 11, 170)] == ["label 1", "label 11", "label 13", "label 182"]
    text(tmp_path / "labels.txt", ["1: person"])
    with pytest.raises(DataError, match=r"labels\.txt: has no name of id 2"):
        datasets.names_of("coco_stuff", tmp_path)


# --- NYUDv2 --------------------------------------------------------------------------------------


def test_nyudv2_is_turned_mapped_and_split(tmp_path):
    miniatures.nyudv2(tmp_path)
    source = datasets.source("nyudv2", tmp_path, "train", 40, 255)
    assert [source[i]["name"] for i in range(len(source))] == ["0001", "0003"]
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat") as file:
        np.testing.assert_array_equal(source[1]["image"], file["images"][2].transpose(2, 1, 0))
    assert (source[0]["label"][:, :3] == [255, 2, 39]).all()
    assert len(datasets.source("nyudv2", tmp_path, "test", 40, 255)) == 1


def test_channels_of_nyudv2(tmp_path):
    miniatures.nyudv2(tmp_path)
    height, width = miniatures.NYUDV2_SIZE

    def images(channels):
        return datasets.source("nyudv2", tmp_path, "train", 40, 255, channels)[0]["image"]

    rgb = images("rgb")
    assert rgb.shape == (height, width, 3)
    depth = images("rgb_depth")
    np.testing.assert_array_equal(depth[..., :3], rgb)
    assert (depth[..., 3] == round(255 * np.log(2 / 0.5) / np.log(10 / 0.5))).all()
    both, alone = images("rgb_hha"), images("hha")
    assert both.dtype == alone.dtype == np.uint8
    np.testing.assert_array_equal(both, np.concatenate([rgb, alone], axis=-1))
    assert (alone[..., 0] == 155).all()  # 310 / 2 m
    assert (alone[:, 20:, 2] == 128).all()  # a wall
    assert (alone[:, :8, 2] == 0).all()  # not measured
    assert nyudv2.CAMERA.cx < 640


def test_channels_that_a_dataset_has_not_are_refused():
    config = configuration.load(f"{ROOT}/configs/fcn.py:nyudv2", {"data.channels": "rgb_hah"})
    with pytest.raises(ConfigError, match=r"nyudv2 has rgb, .*did you mean 'rgb_hha'"):
        configuration.check(config)
    config = configuration.load(f"{ROOT}/configs/fcn.py:voc", {"data.channels": "hha"})
    with pytest.raises(ConfigError, match=r"data\.channels='hha': voc has rgb"):
        configuration.check(config)


def test_a_net_of_other_channels_does_not_predict_from_rgb_files(tmp_path):
    picture(tmp_path / "photo.jpg")
    config = configuration.load(f"{ROOT}/configs/fcn.py:nyudv2", {"data.channels": "hha"})
    with pytest.raises(ConfigError, match=r"data\.channels=hha.* --mode=eval"):
        main.run(config, "predict", tmp_path / "work", input=str(tmp_path / "photo.jpg"))


def test_without_h5py_its_extra_is_named(tmp_path):
    miniatures.nyudv2(tmp_path)
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "from deeplab_jax.data import datasets\n"
        "datasets.source('nyudv2', sys.argv[1], 'train', 40, 255)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert "pip install 'deeplab_jax[nyudv2]'" in done.stderr


def test_damaged_or_foreign_files_of_nyudv2_are_named(tmp_path):
    miniatures.nyudv2(tmp_path)
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"nyu_depth_v2_labeled\.mat: damaged or truncated"):
        datasets.source("nyudv2", tmp_path, "train", 40, 255)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["labels"]
    with pytest.raises(DataError, match=r"labeled\.mat: no labels of scene 1"):
        datasets.source("nyudv2", tmp_path, "train", 40, 255)
    path.unlink()
    with pytest.raises(DataError, match=r"labeled\.mat: no such file or folder; get nyu_depth"):
        datasets.source("nyudv2", tmp_path, "train", 40, 255, "rgb_depth")
    (tmp_path / "splits.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"splits\.mat: damaged"):
        datasets.source("nyudv2", tmp_path, "train", 40, 255)
