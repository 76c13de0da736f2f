"""Scales and mirrored images against the official code's `predict_labels_multi_scale`."""

import jax
import numpy as np
import pytest
from conftest import GOLDEN
from test_golden_models import built, seeded

from deeplab_jax import models
from deeplab_jax.predict import label_maps, predict

NAME = "tf_Ddm05_mobilenetv2_dm05_os16_129"
# as in the fixture: (size, scales, mirrored)
CASES = {
    "ms_flip": ((129, 129), (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True),
    "ms_noflip": ((129, 129), (0.5, 1.0, 1.75), False),
    "ms_flip_rect": ((97, 145), (0.75, 1.0, 1.25), True),
}


@pytest.fixture(scope="module")
def half():
    weights, _ = seeded(NAME)
    return built(weights, {})


def image_of(size):
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_scales_and_flips_give_the_official_labels(case, half):
    module, variables = half
    size, scales, flips = CASES[case]
    ours = label_maps(
        module,
        variables,
        image_of(size),
        normalization="zero_mean",
        align_corners=True,
        eval_scales=scales,
        add_flipped_images=flips,
    )
    theirs = np.load(GOLDEN / "Ddm05_multiscale.npz")[f"{case}/argmax"]
    assert (np.asarray(ours[0]) == theirs).mean() >= 0.9995


def test_an_image_pyramid_takes_the_official_maximum(half):
    _, variables = half
    module = models.build(
        "v3",
        "mobilenet_v2",
        21,
        width_multiplier=0.5,
        atrous_rates=None,
        input_scales=(0.5, 1.0, 1.5),
    )
    x = image_of((129, 129)) * np.float32(2 / 255) - 1
    ours = np.asarray(jax.jit(module.apply)(variables, x)["logits"])
    theirs = np.load(GOLDEN / "Ddm05_multiscale.npz")["pyramid/merged_logits"]
    assert np.abs(ours - theirs).max() <= 1e-3 * theirs.std()


def test_a_mirrored_image_gives_mirrored_labels(half):
    module, variables = half
    image = image_of((65, 97))[0].astype(np.uint8)
    options = {"eval_scales": (0.75, 1.0), "add_flipped_images": True}
    labels = predict(module, variables, image, crop_size=(65, 97), **options)
    mirrored = predict(module, variables, image[:, ::-1], crop_size=(65, 97), **options)
    assert (labels[:, ::-1] == mirrored).mean() > 0.999
    assert len(np.unique(labels)) > 1
    plain = predict(module, variables, image, crop_size=(65, 97))
    assert (labels != plain).any()


@pytest.mark.parametrize("size", [(95, 61), (190, 150), (65, 65)])
def test_small_logits_at_small_scales_are_upsampled_as_the_whole_images(size, half):
    """Two or three samples a side: their size cannot be guessed from a stride."""
    module, variables = half
    labels = label_maps(
        module,
        variables,
        image_of(size),
        normalization="zero_mean",
        align_corners=True,
        eval_scales=(0.25, 0.5),
        add_flipped_images=True,
    )
    assert labels.shape == (1, *size)
    assert len(np.unique(labels)) > 1
