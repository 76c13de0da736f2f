"""Pixels against the official code's, and what must hold at any size, scale and label."""

import dataclasses

import numpy as np
import pytest
from conftest import GOLDEN

from deeplab_jax import ops
from deeplab_jax.data import pipeline, transforms
from deeplab_jax.data.transforms import Augment, Placed, ResizeToRange


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "fn_preprocess.npz") as file:
        return {name: file[name] for name in file.files}


def example(golden):
    return {"image": golden["image"], "label": golden["label"][..., 0]}


def augment(**changes):
    options = {"crop_size": (33, 41), "min_scale_factor": 0.5, "max_scale_factor": 2.0}
    options |= {"scale_factor_step_size": 0.0, "flip": True, "pad_value": (1.0, 2.0, 3.0)}
    return Augment(**options | changes)


# --- against the official code ---


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 2.0])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("top", "left"), [(0, 0), (7, 12)])
def test_a_crop_is_scaled_padded_cut_and_mirrored_as_the_reference_does(
    golden, scale, mirrored, top, left
):
    """`batch` computes windows alone; here the whole, step by step."""
    image, label = golden[f"scaled_img_{scale}"], golden[f"scaled_lab_{scale}"][..., 0]
    crop, mean = (33, 41), (123.15, 115.9, 103.06)
    height, width = (max(n, c + start) for n, c, start in zip(label.shape, crop, (top, left)))
    whole = np.empty((height, width, 3), np.float32)
    whole[...] = mean
    whole[: image.shape[0], : image.shape[1]] = image
    ids = np.full((height, width), 255)
    ids[: label.shape[0], : label.shape[1]] = label
    turn = -1 if mirrored else 1
    window = (slice(top, top + crop[0]), slice(left, left + crop[1]))

    placed = Placed(example(golden), scale, label.shape, top, left, mirrored)
    out = augment(crop_size=crop, pad_value=mean).batch([placed])
    np.testing.assert_allclose(out["image"][0], whole[window][:, ::turn], atol=1e-3)
    np.testing.assert_array_equal(out["label"][0], ids[window][:, ::turn])


@pytest.mark.parametrize("backbone", ["xception_65", "resnet_v1_101"])
def test_an_evaluated_image_is_padded_with_the_mean_pixel_as_in_the_reference(golden, backbone):
    name = {"xception_65": "zero_mean", "resnet_v1_101": "imagenet_mean"}[backbone]
    mean, _ = transforms.normalization(name)
    ((images, _),) = pipeline.eval_batches([example(golden)], (65, 65), mean, 1)
    np.testing.assert_allclose(images[0], golden[f"proc_{backbone}"], atol=1e-4)


def test_images_of_one_range_of_sizes_equal_the_reference(golden):
    resized = ResizeToRange(65, 65, 16)(example(golden))
    np.testing.assert_allclose(resized["image"], golden["proc_resize65"], atol=1e-3)
    np.testing.assert_array_equal(resized["label"], golden["lab_resize65"][..., 0])


@pytest.mark.parametrize(
    ("old", "least", "most", "factor", "new"),
    [
        ((375, 500), 513, 513, 16, (385, 513)),
        ((500, 375), 513, 513, 16, (513, 385)),
        ((256, 341), 513, 513, 16, (385, 513)),
        ((1000, 300), 257, 257, 16, (257, 81)),
        ((1000, 300), 513, 513, None, (513, 153)),
        ((300, 400), 513, 1025, 32, (513, 705)),
        ((100, 1200), 513, 1025, 32, (97, 1025)),
    ],
)
def test_sizes_of_the_range_equal_the_reference(old, least, most, factor, new):
    assert ResizeToRange(least, most, factor).size(old) == new


def test_a_scaled_size_is_rounded_as_float32_is(golden):
    """10 times 0.7 is 7 there, and less than 7 in float64."""
    still = augment(min_scale_factor=0.7, max_scale_factor=0.7)
    placed = still.place({"image": np.zeros((10, 20, 3))}, np.random.default_rng(0))
    assert placed.size == (7, 14)


# --- windows ---


@pytest.mark.parametrize("size", [(40, 50), (71, 83), (150, 20), (1, 1), (39, 200)])
def test_any_window_is_that_part_of_the_whole(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 50, 4)).astype(np.uint8)
    whole = transforms.resize_bilinear(image, size)
    nearest = transforms.resize_nearest(image[..., 0], size)
    for _ in range(10):
        rows, columns = (rng.permutation(n)[: rng.integers(1, n + 1)] for n in size)
        part = transforms.resize_bilinear(image, size, (rows, columns))
        np.testing.assert_array_equal(part, whole[rows][:, columns])
        part = transforms.resize_nearest(image[..., 0], size, (rows, columns))
        np.testing.assert_array_equal(part, nearest[rows][:, columns])


def test_a_small_crop_of_a_huge_image_needs_little_memory(little_memory):
    image = np.broadcast_to(np.uint8(9), (4000, 4000, 3))
    placed = Placed({"image": image, "label": image[..., 0]}, 2.0, (8000, 8000), 99, 5000, True)
    out = augment(crop_size=(257, 257)).batch([placed])
    assert (out["image"] == 9).all()
    assert (out["label"] == 9).all()


# --- for all inputs ---


def random_example(rng):
    """Sizes from 1x1 to past the crop, ids as bytes, 16 bits or negative."""
    size = tuple(rng.integers(1, rng.choice((2, 30, 120)), 2))
    dtype, most = ((np.uint8, 256), (np.uint16, 2**16), (np.int32, 2**20))[rng.integers(3)]
    ids = rng.integers(0, most, rng.integers(1, 9)).astype(dtype)
    return {
        "image": rng.integers(0, 256, (*size, 3)).astype(np.uint8),
        "label": rng.choice(ids, size),
        "label_more": rng.choice(ids, size),
    }


def random_augment(rng):
    low = rng.uniform(0.05, 1.5)
    return augment(
        crop_size=tuple(int(n) for n in rng.integers(1, 60, 2)),
        min_scale_factor=low,
        max_scale_factor=low + rng.choice((0.0, rng.uniform(0, 2))),
        scale_factor_step_size=rng.choice((0.0, 0.25)),
        flip=bool(rng.integers(2)),
        ignore_label=int(rng.choice((255, 254, 0, -1, 65535))),
    )


@pytest.mark.parametrize("seed", range(4))
def test_no_transform_makes_a_new_label_value(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        given, transform = random_example(rng), random_augment(rng)
        if rng.random() < 0.3:
            given = ResizeToRange(*(int(n) for n in rng.integers(1, 90, 2)), 4)(given)
        out = transform(given, rng)
        allowed = {key: {*np.unique(value).tolist()} for key, value in given.items()}
        assert out["image"].shape == (*transform.crop_size, 3)
        for key in ("label", "label_more"):
            assert out[key].shape == transform.crop_size
            assert out[key].dtype == np.int32
            assert {*np.unique(out[key]).tolist()} <= allowed[key] | {transform.ignore_label}
        # Every pixel is in the range of the image's or is the padding.
        for channel, pad in enumerate(transform.pad_value):
            pixels = out["image"][..., channel]
            source = given["image"][..., channel]
            inside = (pixels > source.min() - 1e-3) & (pixels < source.max() + 1e-3)
            assert (inside | (pixels == pad)).all()


def test_the_device_makes_the_crops_of_the_host():
    rng = np.random.default_rng(0)
    for _ in range(4):
        transform = dataclasses.replace(random_augment(rng), crop_size=(33, 41))
        placed = [transform.place(random_example(rng), rng) for _ in range(6)]
        host = transform.batch(placed)
        windows = transform.windows(placed)
        device = ops.crops(windows, transform.pad_value, transform.ignore_label)
        assert device.keys() == host.keys()
        np.testing.assert_allclose(device["image"], host["image"], atol=1e-3 * 255)
        for key in ("label", "label_more"):
            assert device[key].dtype == np.int32
            np.testing.assert_array_equal(device[key], host[key])


def test_windows_hold_what_the_crop_shows_and_little_more():
    image = np.arange(400 * 500 * 3, dtype=np.uint8).reshape(400, 500, 3)
    placed = Placed({"image": image, "label": image[..., 0]}, 2.0, (800, 1000), 99, 500, False)
    windows = augment(crop_size=(129, 65)).windows([placed])
    assert windows["image"].shape == (1, 128, 64, 3)
    assert windows["image"].dtype == np.uint8


@pytest.mark.parametrize("seed", range(2))
def test_a_batch_is_its_examples(seed):
    rng = np.random.default_rng(seed)
    transform = random_augment(rng)
    transform = dataclasses.replace(transform, crop_size=(20, 30))
    placed = [transform.place(random_example(rng), rng) for _ in range(6)]
    together = transform.batch(placed)
    for i, one in enumerate(placed):
        for key, value in transform.batch([one]).items():
            np.testing.assert_array_equal(together[key][i], value[0])
