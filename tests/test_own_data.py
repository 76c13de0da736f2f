"""A user's own data: what classes.json may say, COCO's JSON, and from a folder to a training."""

import json
import struct
import zlib

import numpy as np
import pytest
from conftest import CONFIGS, write_folder
from PIL import Image
from test_coco_annotations import square, thing
from test_main import run
from test_train import small

from deeplab_jax import check_data, main
from deeplab_jax import config as configuration
from deeplab_jax.data import datasets, labels, pipeline
from deeplab_jax.data.labels import Labels
from deeplab_jax.errors import ConfigError, DataError

SPEC = f"{CONFIGS}/v3plus.py:mobilenet_v2,folder"
STREET = {
    "classes": [
        {"name": "road", "color": [128, 64, 128], "ids": [7, 8]},
        {"name": "car", "color": [[0, 0, 142], [0, 0, 70]], "ids": [26]},
        {"name": "straße"},
    ],
    "ignore": {"color": [0, 0, 0], "ids": [0, 1000]},
}


def own(root, classes=None, **changes):
    """The configuration of a folder, with a classes.json if one is given."""
    if classes is not None:
        (root / "classes.json").write_text(json.dumps(classes), "utf-8")
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    splits = {"data.root": str(root), "data.train_split": "all", "eval.split": "all"}
    return configuration.load(SPEC, splits | changes)


def write_mask(root, mask, stem="scene 0"):
    Image.fromarray(mask).save(root / "masks" / f"{stem}.png")


def example(config, index=0):
    return pipeline.source(config.data, "all", config.model.num_classes)[index]


# --- classes.json ---


def test_ids_become_the_places_in_the_list(data_folder):
    raw = np.resize(np.array([7, 8, 26, 2, 0, 1000, 255], np.uint16), (40, 50))
    write_mask(data_folder, raw)
    label = example(own(data_folder, STREET))["label"]
    np.testing.assert_array_equal(label.ravel()[:7], [0, 0, 1, 2, 255, 255, 255])
    write_mask(data_folder, np.full((40, 50), 9, np.uint8))
    with pytest.raises(DataError, match=r"scene 0\.png: ids 9 are not in .*classes\.json"):
        example(own(data_folder))
    others = STREET | {"ignore": {"others": True}}
    assert (example(own(data_folder, others))["label"] == 255).all()


def test_colours_become_the_places_in_the_list(data_folder):
    colors = [(128, 64, 128), (0, 0, 142), (0, 0, 70), (0, 0, 0)]
    write_mask(data_folder, np.resize(np.array(colors, np.uint8), (40, 50, 3)))
    label = example(own(data_folder, STREET))["label"]
    np.testing.assert_array_equal(label.ravel()[:4], [0, 1, 1, 255])
    with Image.open(data_folder / "masks" / "scene 0.png") as mask:
        mask.convert("RGBA").save(data_folder / "masks" / "scene 0.png")
    np.testing.assert_array_equal(example(own(data_folder))["label"], label)


def test_unknown_colours_are_counted_and_explained(data_folder):
    mask = np.full((40, 50, 3), (128, 64, 128), np.uint8)
    mask[0, :3], mask[1, :2] = (128, 64, 127), (1, 2, 3)
    write_mask(data_folder, mask)
    words = r"scene 0\.png: 2 colours .*\(128, 64, 127\) \(3 px\), \(1, 2, 3\) \(2 px\);.*JPEG"
    with pytest.raises(DataError, match=words):
        example(own(data_folder, STREET))
    others = STREET | {"ignore": {"others": True}}
    label = example(own(data_folder, others))["label"]
    assert (label == 255).sum() == 5


def test_16_bit_colours_are_no_colours_of_8(data_folder):
    deep = np.zeros((40, 50, 3), np.uint16)
    path = data_folder / "masks" / "scene 0.png"
    path.write_bytes(png_of_16_bits(deep))
    with pytest.raises(DataError, match="a mask in RGB;16B colours"):
        example(own(data_folder, STREET))


def png_of_16_bits(pixels):
    """Pillow reads these, but cannot write them."""

    def chunk(name, body):
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_names_and_colours_are_the_files(data_folder):
    found = pipeline.class_labels(own(data_folder, STREET).data, None)
    assert found.names == ("road", "car", "straße")
    assert found.palette[[0, 1, 255]].tolist() == [[128, 64, 128], [0, 0, 142], [0, 0, 0]]
    assert found.palette[2].tolist() == labels.voc_palette()[2].tolist()


def test_labels_are_written_as_they_are_read(data_folder, tmp_path):
    path = tmp_path / "labels.json"
    cityscapes = own(data_folder).copy_and_resolve_references().data
    cityscapes.name = "cityscapes"
    for found in (
        pipeline.class_labels(own(data_folder, STREET).data, None),
        pipeline.class_labels(cityscapes, 19),
        labels.labels(["a", "b"], ignore_label=9),
    ):
        path.write_text(found.to_json(), "utf-8")
        again = labels.read(path, found.ignore_label)
        assert (again.names, again.void_ids) == (found.names, found.void_ids)
        drawn = [*range(len(found.names)), 255]
        np.testing.assert_array_equal(again.palette[drawn], found.palette[drawn])
        np.testing.assert_array_equal(again.first_raw_ids, found.first_raw_ids)
        if found.label_map is None:
            assert again.label_map is None
        else:
            np.testing.assert_array_equal(again.label_map, found.label_map)
    raw = pipeline.class_labels(cityscapes, 19).first_raw_ids
    assert raw.dtype == np.uint8
    assert raw.tolist() == list(datasets.DATASETS["cityscapes"].raw_ids)


def test_the_first_of_several_raw_ids_is_written_back():
    found = Labels(("a", "b"), labels.voc_palette(), raw_ids=((8, 7), (300,)))
    assert found.first_raw_ids.tolist() == [8, 300]
    assert found.first_raw_ids.dtype == np.uint16
    with pytest.raises(DataError, match="no mask has an id for b"):
        Labels(("a", "b"), labels.voc_palette(), raw_ids=((8,), ())).first_raw_ids  # noqa: B018


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "not JSON"),
        ([], "the file is '\\[\\]', not {classes, ignore}"),
        ({"klasses": []}, "a key 'klasses' \\(did you mean 'classes'"),
        ({"classes": []}, 'needs "classes"'),
        ({"classes": ["road"]}, "class 0 is 'road', not {"),
        ({"classes": [{"color": [1, 2, 3]}]}, "class 0 needs a printable name"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "class 1 needs .* name of its own, not 'a'"),
        ({"classes": [{"name": "\x1b[31m"}]}, "class 0 needs a printable name"),
        ({"classes": [{"name": "a", "colour": []}]}, "did you mean 'color'"),
        ({"classes": [{"name": "a", "color": [1, 2]}]}, "is \\[red, green, blue\\]"),
        ({"classes": [{"name": "a", "color": [1, 2, 256]}]}, "of 0..255, not \\[1, 2, 256\\]"),
        ({"classes": [{"name": "a", "color": "red"}]}, "'color' is a list, not 'red'"),
        ({"classes": [{"name": "a", "ids": [-1]}]}, '"ids" are whole numbers 0..65535, not -1'),
        ({"classes": [{"name": "a", "ids": [1]}, {"name": "b"}]}, "the id 1 is taken already"),
        (
            {"classes": [{"name": "a", "color": [0, 0, 9]}], "ignore": {"color": [0, 0, 9]}},
            '"ignore": the colour \\[0, 0, 9\\] is taken already',
        ),
        ({"classes": [{"name": f"n{i}"} for i in range(257)]}, "257 classes; labels are bytes"),
    ],
)
def test_what_classes_json_may_not_say(tmp_path, given, message):
    path = tmp_path / "classes.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    with pytest.raises(DataError, match=rf"classes\.json: .*{message}"):
        labels.read(path, 255)


def test_another_number_of_classes_or_a_second_map_is_refused(data_folder):
    with pytest.raises(ConfigError, match=r"names 3 classes.*--config\.model\.num_classes=3"):
        example(own(data_folder, STREET, model__num_classes=4))
    with pytest.raises(ConfigError, match=r"data\.label_map and .*classes\.json both"):
        example(own(data_folder, data__label_map={1: 0}))
    plain = {"classes": [{"name": "a"}, {"name": "b"}]}
    config = own(data_folder, plain, data__label_map={0: 255, 1: 0, 2: 1}, model__num_classes=2)
    assert set(np.unique(example(config)["label"])) == {0, 1, 255}


def test_a_number_of_classes_that_nothing_tells_is_asked_for(data_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"no classes\.json: --mode=check_data"):
        main.run(own(data_folder), "train", tmp_path)
    with pytest.raises(ConfigError, match=r"model\.num_classes is not set"):
        main.run(own(data_folder), "count", tmp_path)


# --- COCO's JSON ---


def write_coco(root, objects, split="train", sizes=((6, 8), (6, 8)), names=("cat", "dog")):
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(root / "images" / f"{split} {i}.jpg")
    images = [
        {"id": i, "file_name": f"{split} {i}.jpg", "height": 6, "width": 8}
        for i in range(len(sizes))
    ]
    categories = [{"id": 90 - 72 * i, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))
    return root


def coco(root, **changes):
    spec = SPEC.replace("folder", "coco_json")
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return configuration.load(spec, {"data.root": str(root), "eval.split": "train"} | changes)


def test_objects_are_labelled_by_their_categories_from_1(tmp_path):
    objects = [thing([square(0, 4)], 18, image_id=0), thing([square(1, 3)], 90, image_id=0)]
    root = write_coco(tmp_path, objects)
    config = coco(root)
    assert pipeline.class_labels(config.data, None).names == ("background", "dog", "cat")
    source = pipeline.source(config.data, "train", 3)
    first, second = source[0], source[1]
    assert first["name"] == "train 0"
    assert (first["label"][0, 0], first["label"][2, 2], first["label"][5, 5]) == (1, 2, 0)
    assert not second["label"].any()
    np.testing.assert_array_equal(source.label(0), first["label"])
    with pytest.raises(ConfigError, match=r"names 3 classes, .*num_classes=3"):
        pipeline.source(config.data, "train", 5)


def test_coco_files_of_other_names_and_one_for_all_splits(tmp_path):
    root = write_coco(tmp_path, [], names=("Background", "dog"), sizes=[(6, 8)] * 11)
    (root / "annotations").mkdir()
    path = (root / "train.json").rename(root / "annotations" / "instances_train2017.json")
    data = coco(root).data
    assert pipeline.class_labels(data, None).names == ("background", "dog")
    assert len(pipeline.source(data, "train", 2)) == 11
    path.rename(root / "annotations" / "all of it.json")
    counts = [len(pipeline.source(data, split, 2)) for split in ("train", "val", "all")]
    assert counts == [10, 1, 11]
    write_coco(tmp_path / "other", [])
    with pytest.raises(DataError, match=r"no annotations val\.json.*its \.json files are: train"):
        pipeline.source(coco(tmp_path / "other").data, "val", 3)  # no tenth of what trains
    write_coco(tmp_path, [], "val", names=("cat", "dog"))
    with pytest.raises(DataError, match=r"its \.json files are: annotations/all of it\.json, val"):
        pipeline.source(data, "train", 2)
    write_coco(tmp_path, [], "train", names=("dog", "cat"))
    with pytest.raises(DataError, match=r"val\.json: has the categories .*'dog', 'cat'"):
        pipeline.source(data, "val", 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].update(file_name="gone.jpg"), r"1 images are not in .*\n.*gone"),
        (lambda c: c["images"][0].update(file_name="../x.jpg"), "must stay inside the dataset"),
        (lambda c: c["images"][0].pop("height"), "an entry of 'images' without a proper"),
        (lambda c: c["images"].append(c["images"][0]), "'images' use an id twice"),
        (lambda c: c["images"].clear() or c["annotations"].clear(), "lists no images"),
        (lambda c: c["annotations"][0].update(image_id=77), r"no image:\n +77"),
        (lambda c: c["annotations"][0].update(category_id=5), "category_id 5 is not among"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2]]), r"at least 3.*train 0\.jpg"),
        (lambda c: c.pop("categories"), "not COCO's format: needs a list 'categories'"),
        (lambda c: c["images"][0].update(width=9), "mask of 9x6 for an image of 8x6"),
    ],
)
def test_what_is_wrong_with_coco_files_is_told(tmp_path, change, message):
    root = write_coco(tmp_path, [thing([square(0, 4)], image_id=0)])
    content = json.loads((root / "train.json").read_text())
    change(content)
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"(?s)train\.json: .*{message}"):
        pipeline.source(coco(root).data, "train", 3)[0]


def test_coco_files_that_are_no_json_are_told(tmp_path):
    root = write_coco(tmp_path, [])
    (root / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"train\.json: not JSON"):
        pipeline.source(coco(root).data, "train", 3)


# --- check_data ---


def test_colours_without_names_are_proposed_the_most_frequent_first(data_folder, tmp_path, capsys):
    for i in range(4):
        mask = np.zeros((40, 50, 3), np.uint8)
        mask[: 5 * i] = (200, 0, 0)
        write_mask(data_folder, mask, f"scene {i}")
    for classes in (None, 3):
        with pytest.raises(DataError, match=r"masks: masks of RGB colours\. Name the classes"):
            main.run(own(data_folder, model__num_classes=classes), "check_data", tmp_path)
    proposal = tmp_path / "check_data" / "classes.json"
    assert proposal.read_text() in capsys.readouterr().out
    colors = [entry["color"] for entry in json.loads(proposal.read_text())["classes"]]
    assert colors == [[0, 0, 0], [200, 0, 0]]
    (data_folder / "classes.json").write_text(proposal.read_text())
    main.run(own(data_folder), "check_data", tmp_path)
    assert "4 examples, 0 of them bad" in capsys.readouterr().out


def test_ids_with_gaps_are_proposed_and_0_with_255_are_two_classes(data_folder, tmp_path):
    paths = sorted((data_folder / "masks").iterdir())
    for raw, names, ids in (
        ([0, 4, 9, 255], ["id_0", "id_4", "id_9"], [[0], [4], [9]]),
        ([0, 255], ["id_0", "id_255"], [[0], [255]]),
    ):
        for path in paths:
            write_mask(data_folder, np.resize(np.array(raw, np.uint8), (40, 50)), path.stem)
        with pytest.raises(DataError, match="masks of ids with gaps"):
            main.run(own(data_folder), "check_data", tmp_path)
        proposal = json.loads((tmp_path / "check_data" / "classes.json").read_text())["classes"]
        assert [entry["name"] for entry in proposal] == names
        assert [entry["ids"] for entry in proposal] == ids


def test_ids_without_gaps_need_no_file(data_folder, tmp_path, capsys):
    main.run(own(data_folder), "check_data", tmp_path)
    assert "class_2" in capsys.readouterr().out


def test_the_configuration_that_check_data_writes_is_ready(data_folder, tmp_path, capsys):
    given = {
        "train__steps": 7,
        "eval__crop_size": (65, 81),
        "data__label_map": {0: 255, 1: 0, 2: 1},
        "model__num_classes": 2,
    }
    config = own(data_folder, **given)
    main.run(config, "check_data", tmp_path, spec=SPEC)
    said = capsys.readouterr().out
    path = tmp_path / "check_data" / "config.py"
    assert f"python -m deeplab_jax.main --config={path} --workdir={tmp_path}" in said
    ready = configuration.load(str(path))
    configuration.check(ready)
    assert (ready.train.steps, ready.model.num_classes) == (7, 2)
    assert ready.data.label_map == {0: 255, 1: 0, 2: 1}
    assert ready.data.root == str(data_folder.resolve())
    assert ready.data.crop_size == (49, 65)
    assert ready.eval.crop_size == ready.predict.crop_size == (65, 81)  # as given
    assert ready.data.ignore_label == 255
    assert max(ready.model.atrous_rates) < 4
    weights = json.loads((tmp_path / "check_data" / "class_weights.json").read_text())
    assert weights.keys() == {"median_frequency", "inverse_log"}
    assert all(len(values) == 2 for values in weights.values())
    assert "class weights, median_frequency: " in said
    assert "# 'loss.class_weights': 'inverse_log'," in path.read_text()
    written = path.read_text()
    main.run(ready, "check_data", tmp_path, spec=str(path))  # its own file stays as it is
    assert path.read_text() == written
    main.run(ready, "check_data", tmp_path / "next", spec=str(path))
    again = configuration.load(str(tmp_path / "next" / "check_data" / "config.py"))
    assert (again.train.steps, again.data.root) == (7, ready.data.root)


def test_a_command_line_goes_from_the_folder_to_its_configuration(data_folder, tmp_path):
    done = run(
        *(f"--config={SPEC}", f"--config.data.root={data_folder}", f"--workdir={tmp_path}"),
        *("--mode=check_data", "--config.data.train_split=all", "--config.eval.split=all"),
    )
    assert done.returncode == 0, done.stderr
    ready = configuration.load(str(tmp_path / "check_data" / "config.py"))
    assert ready.model.num_classes == 3


def test_coco_files_are_checked_and_configured_too(tmp_path, capsys):
    root = write_coco(tmp_path / "data", [thing([square(0, 4)], image_id=0)])
    spec = SPEC.replace("folder", "coco_json")
    main.run(coco(root), "check_data", tmp_path, spec=spec)
    assert "train: 2 examples, 0 of them bad" in capsys.readouterr().out
    ready = configuration.load(str(tmp_path / "check_data" / "config.py"))
    assert (ready.data.name, ready.model.num_classes) == ("coco_json", 3)


def test_crops_cover_the_median_image_up_to_the_papers(data_folder):
    config = own(data_folder)
    found = check_data.fitting(config, {(360, 480): 3})
    assert found["data.crop_size"] == (369, 481)
    assert found["eval.crop_size"] == (369, 481)
    found = check_data.fitting(config, {(300, 2000): 1, (400, 3000): 2})
    assert found["data.crop_size"] == (401, 513)
    assert found["eval.crop_size"] is None


@pytest.mark.slow
def test_a_folder_trains_by_the_configuration_made_for_it(tmp_path):
    root = write_folder(tmp_path / "data", count=12)
    config = small(root, data__train_split="train", eval__split="val", train__steps=2)
    main.run(config, "check_data", tmp_path / "run", spec=SPEC)
    ready = configuration.load(str(tmp_path / "run" / "check_data" / "config.py"))
    assert main.run(ready, "train", tmp_path / "run")["mean_iou"] >= 0
    assert (tmp_path / "run" / "labels.json").is_file()
