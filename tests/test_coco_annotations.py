"""Objects of COCO's annotation files as label maps: overlaps, crowds, shapes that are none."""

import math

import numpy as np
import pytest
from pycocotools import mask as coco

from deeplab_jax.data.coco_annotations import mask_of
from deeplab_jax.errors import DataError

LABELS = {18: 1, 90: 2}


def square(low, high):
    return [low, low, high, low, high, high, low, high]


def thing(segmentation, category_id=18, **more):
    return {"id": 7, "image_id": 3, "category_id": category_id, "segmentation": segmentation} | more


def runs(mask):
    """Uncompressed run lengths down the columns, the first of zeros."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [1 - mask[-1, -1]]])
    starts = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff([0, *starts]).tolist()}


def test_a_polygon_covers_its_pixels():
    mask = mask_of([thing([square(2, 6)])], (8, 10), LABELS, 255)
    expected = np.zeros((8, 10), np.uint8)
    expected[2:6, 2:6] = 1
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


def test_several_polygons_and_both_run_lengths_are_one_object():
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 2, (9, 7)).astype(np.uint8)
    compressed = coco.encode(np.asfortranarray(wanted))
    text = compressed | {"counts": compressed["counts"].decode()}
    for given in (runs(wanted), compressed, text):
        np.testing.assert_array_equal(mask_of([thing(given)], (9, 7), LABELS, 255), wanted)
    parts = mask_of([thing([square(0, 2), square(4, 6)])], (9, 7), LABELS, 255)
    assert parts[0, 0] == parts[5, 5] == 1
    assert parts[3, 3] == 0


def test_the_smaller_object_lies_on_top_and_of_two_alike_the_later():
    large, small = thing([square(0, 8)]), thing([square(2, 4)], 90)
    for order in ([large, small], [small, large]):
        mask = mask_of(order, (8, 8), LABELS, 255)
        assert (mask[3, 3], mask[6, 6]) == (2, 1)
    assert mask_of([thing([square(2, 4)]), small], (8, 8), LABELS, 255)[3, 3] == 2


def test_crowds_are_void_below_all_objects():
    crowd = np.ones((8, 8), np.uint8)
    crowd[:, 6:] = 0
    objects = [thing([square(1, 3)], 90), thing(runs(crowd), iscrowd=1)]
    mask = mask_of(objects, (8, 8), LABELS, 255)
    assert (mask[2, 2], mask[5, 5], mask[0, 7]) == (2, 255, 0)
    assert not mask_of([], (8, 8), LABELS, 255).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (thing([square(0, 2)], 4), "category_id 4 is not among the categories"),
        (thing([]), "no segmentation"),
        (thing(None), "no segmentation"),
        (thing([[0, 0, 1, 1]]), "at least 3 points"),
        (thing([[0, 0, 1, 1, 2, 2, 3]]), "at least 3 points"),
        (thing([[0, 0, 1, 1, 2, "x"]]), "at least 3 points"),
        (thing([[0, 0, 1, 1, 2, math.nan]]), "at least 3 points"),
        (thing([0, 0, 1, 1, 2, 2]), "at least 3 points"),
        (thing([square(0, 900)]), r"point \(900, 0\) lies far outside the 8x6 image"),
        (thing({"size": [8, 6], "counts": [48]}), r"\[8, 6\].* in an image of size \[6, 8\]"),
        (thing({"size": [6, 8], "counts": [40]}), "add up to 40, the image has 48"),
        (thing({"size": [6, 8], "counts": [-1, 49]}), "whole numbers"),
        (thing({"size": [6, 8], "counts": "no code"}), "cannot be read"),
        (thing({"size": [6, 8]}), r"run lengths .* in an image of size \[6, 8\]"),
    ],
)
def test_what_is_no_shape_is_named(given, message):
    with pytest.raises(DataError, match=f"annotation 7 of image 3: .*{message}"):
        mask_of([given], (6, 8), LABELS, 255)
