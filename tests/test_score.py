"""--mode=score: label images of any origin against masks."""

import json

import numpy as np
import pytest
from conftest import CONFIGS
from PIL import Image

from deeplab_jax import config, main, metrics, score
from deeplab_jax.errors import ConfigError, DataError


@pytest.fixture
def folders(tmp_path):
    """(predictions, masks): six of 40x60, in nested folders, with void; a prediction more."""
    rng = np.random.default_rng(0)
    predictions, masks = tmp_path / "theirs" / "seen", tmp_path / "masks"
    predictions.mkdir(parents=True)
    masks.mkdir()
    for i in range(6):
        truth = np.kron(rng.integers(0, 4, (4, 6)), np.ones((10, 10), int)).astype(np.uint8)
        given = np.where(rng.random(truth.shape) < 0.8, truth, 0).astype(np.uint8)
        truth[:3] = 255
        Image.fromarray(truth).save(masks / f"scene {i}.png")
        Image.fromarray(given).save(predictions / f"scene {i}.png")
    Image.fromarray(given).save(predictions / "more.png")
    return predictions.parent, masks


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_figures_are_those_of_the_files(folders, tmp_path, capsys):
    predictions, masks = folders
    output = tmp_path / "scores"
    figures = main.run(None, "score", None, str(predictions), output, truth=str(masks))
    counts = boundary = 0
    for mask in masks.iterdir():
        truth, given = read(mask), read(predictions / "seen" / mask.name)
        counts = counts + metrics.confusion(truth, given, 4)
        boundary = boundary + metrics.boundary_counts(truth, given, 4)
    assert figures["mean_iou"] == metrics.mean_iou(counts)
    assert figures["mean_boundary_iou"] == pytest.approx((boundary[:, 0] / boundary[:, 1]).mean())
    assert 0.2 < figures["mean_boundary_iou"] < figures["mean_iou"]
    stored = json.loads((output / "results.json").read_text())
    assert stored["settings"]["images"] == 6
    assert f"mean iou: {100 * figures['mean_iou']:.2f} %" in capsys.readouterr().out
    assert "class_3" in (output / "report.html").read_text()


def test_a_file_against_a_file(folders):
    predictions, masks = folders
    perfect = main.run(
        None, "score", None, str(masks / "scene 1.png"), truth=str(masks / "scene 1.png")
    )
    assert perfect["mean_iou"] == perfect["mean_boundary_iou"] == 1
    found = score.pairs(predictions / "seen" / "more.png", masks / "scene 5.png")
    assert len(found) == 1


def test_what_does_not_fit_is_named(folders):
    predictions, masks = folders

    def run():
        return main.run(None, "score", None, str(predictions), truth=str(masks))

    first = predictions / "seen" / "scene 0.png"
    good = read(first)
    for bad, words in (
        (good[:, :-1], r"scene 0.png: 59x40, but .*scene 0.png is 60x40"),
        (np.full(good.shape, 300, np.uint16), "ids up to 300: labels are bytes"),
        (np.where(good == 1, 255, good).astype(np.uint8), r"scene 0.png: \d+ pixels are void"),
    ):
        Image.fromarray(bad).save(first)
        with pytest.raises(DataError, match=words):
            run()
    first.unlink()
    with pytest.raises(DataError, match=r"1 of 6 masks in .* have no prediction"):
        run()
    with pytest.raises(DataError, match="no such file or folder"):
        main.run(None, "score", None, "/nowhere", truth=str(masks))
    with pytest.raises(ConfigError, match="--truth"):
        main.run(None, "score", None, str(predictions))
    for mask in masks.iterdir():
        Image.fromarray(np.full((40, 60), 255, np.uint8)).save(mask)
    Image.fromarray(good).save(first)
    with pytest.raises(DataError, match="nothing but void"):
        run()


@pytest.mark.parametrize("raw", [False, True])
def test_predictions_hold_labels_or_the_masks_own_ids(folders, tmp_path, raw):
    """Masks have the ids 10, 20, 30, 40 for the classes 0 to 3, and some RGB colours."""
    predictions, masks = folders
    colors = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 9, 0]], np.uint8)
    classes = [
        {"name": f"class_{i}", "ids": [10 * i + 10], "color": color.tolist()}
        for i, color in enumerate(colors)
    ]
    ignore = {"color": [255, 255, 255]}
    root = tmp_path / "root"
    root.mkdir()
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": ignore}))
    before = main.run(None, "score", None, str(predictions), truth=str(masks))
    for i, path in enumerate(sorted(masks.iterdir())):
        ids = read(path)
        drawn = np.where((ids == 255)[..., None], 255, colors[ids % 255]).astype(np.uint8)
        own = np.where(ids == 255, 255, 10 * ids + 10).astype(np.uint8)
        Image.fromarray(own if i % 2 else drawn).save(path)
        if raw:
            given = predictions / "seen" / path.name
            Image.fromarray(10 * read(given) + 10).save(given)
    settings = config.load(
        f"{CONFIGS}/v3.py:folder",
        {"data.root": str(root), "model.num_classes": 4, "predict.raw_ids": raw},
    )
    after = main.run(settings, "score", None, str(predictions), truth=str(masks))
    assert after["mean_iou"] == before["mean_iou"]
    assert after["boundary_iou"] == before["boundary_iou"]
