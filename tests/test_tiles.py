"""Tiles: they cover, they blend to what each says, and they take little memory."""

import functools
import tracemalloc

import jax
import numpy as np
import pytest

from deeplab_jax import models, tiles
from deeplab_jax.errors import ConfigError
from deeplab_jax.predict import predict, probabilities


def whole(image, *args):
    answer = None
    for place, probs in tiles.blended(image, *args):
        if answer is None:
            answer = np.full((*image.shape[:2], probs.shape[-1]), np.nan, np.float32)
        assert np.isnan(answer[place]).all()  # every pixel is given once
        answer[place] = probs
    return answer


@pytest.mark.parametrize("overlap", [0, 5, 15])
@pytest.mark.parametrize("size", [(32, 32), (33, 200), (301, 64), (7, 90), (1, 1)])
def test_what_each_tile_says_of_its_pixels_is_the_answer(size, overlap):
    rng = np.random.default_rng(0)
    image = rng.random((*size, 4)).astype(np.float32)
    answer = whole(image, lambda tile: tile, (32, 48), overlap)
    np.testing.assert_allclose(answer, image, atol=1e-6)


@pytest.mark.parametrize("length", [33, 64, 100, 999])
@pytest.mark.parametrize("overlap", [0, 3, 15])
def test_tiles_cover_and_overlap(length, overlap):
    begins = tiles.starts(length, 32, overlap)
    assert begins[0] == 0
    assert begins[-1] + 32 == length
    assert (np.diff(begins) <= 32 - overlap).all()
    assert len(begins) == int(np.ceil((length - overlap) / (32 - overlap)))


def test_two_tiles_change_over_smoothly():
    """One says 0, the other 1: between them it rises, by no more than the ramp's steepest step."""
    calls = iter([0.0, 1.0])

    def see(tile):
        return np.full((*tile.shape[:2], 1), next(calls), np.float32)

    answer = whole(np.zeros((32, 48, 3), np.float32), see, (32, 32), 16 - 1)[0, :, 0]
    assert answer[0] == 0
    assert answer[-1] == 1
    assert (np.diff(answer) >= -1e-6).all()
    assert np.diff(answer).max() < np.pi / 2 / 15 + 0.01


def test_memory_does_not_grow_with_the_images_height():
    def peak(height):
        image = np.zeros((height, 64, 3), np.uint8)
        tracemalloc.start()
        for _ in tiles.blended(image, lambda tile: np.ones((*tile.shape[:2], 9)), (64, 64), 16):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(128)
    assert peak(4096) < 1.1 * peak(256)


def test_memory_grows_with_the_width_by_the_shared_rows_alone():
    classes, overlap, wide = 9, 16, 4096

    def see(tile):
        return np.ones((*tile.shape[:2], classes), np.float32)

    image = np.zeros((256, wide, 3), np.uint8)
    tracemalloc.start()
    for _ in tiles.blended(image, see, (64, 64), overlap):
        pass
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows = 4 * wide * classes * overlap  # bytes, of two rows of tiles at a time
    assert most < 2 * rows + 8 * 4 * 64 * 64 * classes + 100_000


@pytest.mark.parametrize("overlap", [-1, 16, 40])
def test_tiles_that_overlap_too_much_are_refused(overlap):
    with pytest.raises(ConfigError, match="half a tile"):
        whole(np.zeros((64, 64, 3)), lambda tile: tile, (32, 48), overlap)


def test_prediction_in_tiles_is_the_blend_of_predictions():
    module = models.build(
        name="v3", backbone="mobilenet_v2", num_classes=5, atrous_rates=None, logits_stddev=1.0
    )
    images = np.zeros((1, 65, 65, 3), np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), images)
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3)).astype(np.uint8)
    options = {"tile_size": (65, 65), "tile_overlap": 16}
    tiled = predict(module, variables, image, **options)
    assert tiled.dtype == np.uint8
    assert tiled.shape == image.shape[:2]
    see = functools.partial(probabilities, module, variables, align_corners=True)
    blend = whole(image, see, (65, 65), 16)
    np.testing.assert_array_equal(tiled, blend.argmax(-1))
    small = image[:60, :60]
    np.testing.assert_array_equal(
        predict(module, variables, small, **options), predict(module, variables, small)
    )
    with pytest.raises(ConfigError, match="tiles go"):
        predict(module, variables, image, crf={"iterations": 1}, **options)
