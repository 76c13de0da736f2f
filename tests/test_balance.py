"""Pixel counts, and the two things made of them: class weights and repeated images."""

import numpy as np
import pytest
from conftest import pairs, write_folder
from PIL import Image

from deeplab_jax.data import balance
from deeplab_jax.data.synthetic import Synthetic
from deeplab_jax.errors import DataError

COUNTS = np.array([[80, 20, 0, 0], [50, 0, 50, 0], [0, 0, 0, 0]])  # the last image is all void


def masks(root, *maps):
    """Gives the dataset in `root` these label maps, in small."""
    for i, ids in enumerate(maps):
        mask = np.resize(np.array(ids, np.uint8), (40, 50))
        Image.fromarray(mask).save(root / "masks" / f"scene {i}.png")
    return pairs(root)


def test_pixels_are_counted_without_opening_an_image(data_folder):
    source = masks(data_folder, [0], [0, 1], [2, 255], [255])
    for path in source.images:
        path.write_bytes(b"no picture")
    counts = balance.pixel_counts(source, 3, 255)
    assert counts.dtype == np.int64
    expected = [[2000, 0, 0], [1000, 1000, 0], [0, 0, 1000], [0, 0, 0]]
    np.testing.assert_array_equal(counts, expected)
    masks(data_folder, [0, 7])
    with pytest.raises(DataError, match=r"scene 0\.png: ids 7"):
        balance.pixel_counts(source, 3, 255)


def test_sources_that_make_whole_examples_are_counted_too():
    scenes = balance.Picked(Synthetic("val"), [3, 1])
    counts = balance.pixel_counts(scenes, 9, 255)
    for row, index in zip(counts, (3, 1)):
        label = Synthetic("val")[index]["label"]
        np.testing.assert_array_equal(row, np.bincount(label[label != 255], minlength=9))


def test_median_frequency_weights_by_hand():
    # Frequencies 130/200, 20/100 and 50/100 where they appear; their median is 0.5.
    weights = balance.class_weights("median_frequency", COUNTS)
    np.testing.assert_allclose(weights, [0.5 / 0.65, 2.5, 1.0, 1.0])


def test_inverse_log_weights_by_hand():
    weights = balance.class_weights("inverse_log", COUNTS)
    expected = [1 / np.log(1.02 + share) for share in (0.65, 0.1, 0.25, 0.0)]
    np.testing.assert_allclose(weights, expected)


@pytest.mark.parametrize("name", balance.CLASS_WEIGHTS)
def test_weights_of_nothing_labelled_are_numbers(name):
    assert np.isfinite(balance.class_weights(name, np.zeros((2, 3), np.int64))).all()


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="'mean' is not one of median_frequency, inverse_log"):
        balance.class_weights("mean", COUNTS)


def test_images_with_hard_classes_appear_again(tmp_path):
    source = masks(write_folder(tmp_path / "data"), [0], [0, 1], [1, 2], [2, 255])
    data = {
        "bootstrap_classes": (1,),
        "bootstrap_copies": 3,
        "ignore_label": 255,
        "num_threads": 2,
    }
    repeated, weights = balance.balanced(source, data, {"class_weights": None}, 3)
    assert weights is None
    names = [repeated[i]["name"][-1] for i in range(len(repeated))]
    assert names == ["0", "1", "1", "1", "2", "2", "2", "3"]
    # The weights are of the pixels as the epoch has them: 5000, 6000 and 4000 of 15000.
    _, weights = balance.balanced(source, data, {"class_weights": "inverse_log"}, 3)
    np.testing.assert_allclose(weights, [1 / np.log(1.02 + n / 15) for n in (5, 6, 4)])


def test_nothing_is_counted_where_nothing_asks_for_it():
    data, loss = {"bootstrap_classes": ()}, {"class_weights": (1.0, 2.0)}
    assert balance.balanced(None, data, loss, 2) == (None, (1.0, 2.0))
