"""The embedded scenes: reproducible, and fair in the ways the papers' claims need."""

import hashlib

import numpy as np
import pytest

from deeplab_jax import metrics
from deeplab_jax.data import synthetic, transforms
from deeplab_jax.data.synthetic import TWIN_A, TWIN_B, Synthetic

CLASSES = 9


@pytest.fixture(scope="module")
def scenes():
    source = Synthetic("train")
    return [source[i] for i in range(300)]


@pytest.fixture(scope="module")
def fresh():
    source = Synthetic("val")
    return [source[i] for i in range(150)]


def test_a_scene_is_a_function_of_seed_and_index():
    one, again = Synthetic("train")[7], Synthetic("train")[7]
    for key in one:
        np.testing.assert_array_equal(one[key], again[key])
    for other in (Synthetic("train")[8], Synthetic("val")[7], Synthetic("train", seed=1)[7]):
        assert (other["label"] != one["label"]).any()
    assert one["image"].shape == (193, 193, 3)
    assert one["image"].dtype == one["label"].dtype == np.uint8


def test_the_generator_is_frozen():
    """A change here is another dataset: raise VERSION, and say so in the CHANGELOG."""
    digest = hashlib.sha256()
    for i in range(20):
        digest.update(Synthetic("val")[i]["label"].tobytes())
    assert synthetic.VERSION == 1
    assert digest.hexdigest()[:16] == "1488089f5051fa51"


def test_splits_and_versions():
    assert (len(Synthetic("train")), len(Synthetic("val"))) == (2000, 500)
    with pytest.raises(ValueError, match="split 'test'"):
        Synthetic("test")
    with pytest.raises(ValueError, match="version 99"):
        Synthetic("train", version=99)


def test_every_class_is_common_and_background_about_half(scenes):
    labels = np.stack([scene["label"] for scene in scenes])
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert 0.5 < share[0] < 0.62
    assert 0.03 < share[255] < 0.07
    assert share[1:CLASSES].min() > 0.002
    assert share[CLASSES:255].sum() == 0
    twins = [{TWIN_A, TWIN_B} & set(np.unique(scene["label"])) for scene in scenes]
    assert all(len(pair) in (0, 2) for pair in twins)
    assert 0.4 < np.mean([len(pair) == 2 for pair in twins]) < 0.6


def test_colour_and_place_do_not_tell_the_class(scenes, fresh):
    """A nearest-neighbour pixel classifier on colour and position stays under 0.25 mean IoU."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)

    def pixels(some, each):
        x, y = [], []
        place = np.stack(np.mgrid[:193, :193], axis=-1) * (64 / 193)
        for scene in some:
            valid = np.flatnonzero(scene["label"].ravel() != 255)
            chosen = rng.choice(valid, each, replace=False)
            features = np.concatenate([scene["image"].astype(float), place], axis=-1)
            x.append(features.reshape(-1, 5)[chosen])
            y.append(scene["label"].ravel()[chosen])
        return np.concatenate(x), np.concatenate(y)

    x, y = pixels(scenes, 400)
    x_new, y_new = pixels(fresh, 200)
    _, neighbours = cKDTree(x).query(x_new, k=15)
    votes = np.apply_along_axis(np.bincount, 1, y[neighbours], minlength=CLASSES).argmax(1)
    assert metrics.mean_iou(metrics.confusion(y_new, votes, CLASSES)) < 0.25


def test_no_patch_of_33_px_around_a_twin_sees_any_beacon(scenes):
    reach = 33 // 2
    for scene in scenes:
        cues = np.argwhere(np.isin(scene["links"], (2, 4)))
        twins = np.argwhere(np.isin(scene["label"], (TWIN_A, TWIN_B)))
        if len(twins):
            gap = np.abs(twins[:, None] - cues[None]).max(axis=-1)
            assert gap.min() > reach


def test_twins_are_alike_but_for_the_beacon(scenes):
    """Colours, sizes and places of the two kinds have the same distribution."""
    figures = {TWIN_A: [], TWIN_B: []}
    for scene in scenes:
        for kind, rows in figures.items():
            inside = scene["label"] == kind
            if inside.any():
                y, x = np.nonzero(inside)
                rows.append([*scene["image"][inside].mean(0), y.mean(), x.mean(), inside.sum()])
    a, b = (np.array(rows) for rows in figures.values())
    noise = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    assert (np.abs(a.mean(0) - b.mean(0)) < 4 * noise).all()


def test_each_twins_own_beacon_is_near_and_the_other_far(scenes):
    for scene in scenes:
        at = {k: np.argwhere(scene["links"] == k) for k in (1, 2, 3, 4)}
        if len(at[1]) and len(at[3]):
            mean = {k: points.mean(0) for k, points in at.items()}
            for twin, own, other in ((1, 2, 4), (3, 4, 2)):
                assert 40 < np.linalg.norm(mean[twin] - mean[own]) < 80
                assert np.linalg.norm(mean[twin] - mean[other]) > 85


def test_coarse_logits_cannot_be_perfect_and_stride_4_nearly_can(fresh):
    """The best that logits at a stride can do: true one-hot scores there, upsampled."""
    bound = {}
    for stride in (4, 16):
        total = np.zeros((CLASSES, CLASSES), np.int64)
        for scene in fresh[:60]:
            label = scene["label"]
            scores = np.eye(256, dtype=np.float32)[label][..., :CLASSES]  # void scores nothing
            up = transforms.resize_bilinear(scores[::stride, ::stride], label.shape)
            total += metrics.confusion(label, up.argmax(-1), CLASSES)
        bound[stride] = metrics.mean_iou(total)
    assert bound[16] <= 0.75
    assert bound[4] >= 0.93


def test_depth_and_geometry_on_request():
    plain = Synthetic("val")[3]
    rich = Synthetic("val", depth=True, geometry=True)[3]
    np.testing.assert_array_equal(rich["image"][..., :3], plain["image"])
    np.testing.assert_array_equal(rich["label"], plain["label"])
    depth, geometry = rich["image"][..., 3].astype(float), rich["label_geometry"]
    assert set(np.unique(geometry)) <= {0, 1, 2}
    ground = 255 * (0.3 + 0.25 * np.linspace(0, 1, 193))[:, None]
    raised = (depth - ground)[geometry == 1]
    assert raised.size == 0 or raised.mean() > 10
