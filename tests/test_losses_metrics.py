import json

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN
from scipy import ndimage

from deeplab_jax import evaluate, losses, metrics, ops, runtime

LOSS = common.base().loss.to_dict()
REFERENCE = json.loads((GOLDEN / "fn_loss.json").read_text())


def test_cross_entropy_is_minus_the_log_probability_where_labelled():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 5, 6))
    labels[0, :2] = 255
    total, count = losses.softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    valid = labels != 255
    picked = np.take_along_axis(logits[valid], labels[valid][:, None], axis=-1)[:, 0]
    expected = (np.log(np.exp(logits[valid]).sum(-1)) - picked).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(count) == valid.sum()


def derived_loss(logits, labels, align_corners):
    """The same sum, with a gradient that JAX derives."""
    logits = ops.resize_bilinear(logits, labels.shape[1:], align_corners)
    picked = jnp.sum(jnp.where(labels[..., None] == jnp.arange(4), logits, 0), axis=-1)
    return jnp.sum(jnp.where(labels == 255, 0, jax.nn.logsumexp(logits, axis=-1) - picked))


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_gradient_of_the_loss_equals_the_derived_one_and_finite_differences(align_corners):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        logits = 10 * rng.standard_normal((2, 5, 6, 4))
        labels = rng.choice([0, 1, 2, 3, 255], (2, 17, 21))

        def loss(logits):
            return losses.softmax_cross_entropy(logits, labels, align_corners=align_corners)[0]

        value, gradient = jax.value_and_grad(lambda x: 3 * loss(x))(logits)
        wanted = jax.value_and_grad(lambda x: 3 * derived_loss(x, labels, align_corners))(logits)
        np.testing.assert_allclose(value, wanted[0], rtol=1e-12)
        np.testing.assert_allclose(gradient, wanted[1], atol=1e-12)
        np.testing.assert_allclose(value, 3 * loss(logits), rtol=1e-12)
        direction = rng.standard_normal(logits.shape)
        slope = (loss(logits + 1e-6 * direction) - loss(logits - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(jnp.sum(gradient * direction), 3 * slope, rtol=1e-5)


@pytest.mark.parametrize("choices", [{}, {"hardest": 0.3, "label_smoothing": 0.1}], ids=str)
def test_the_loss_holds_two_arrays_of_full_size_and_no_third(choices):
    logits = jax.ShapeDtypeStruct((2, 33, 33, 21), jnp.float32)
    labels = jax.ShapeDtypeStruct((2, 257, 257), jnp.uint8)
    gradient = jax.grad(lambda x, y: losses.softmax_cross_entropy(x, y, **choices)[0])
    memory = jax.jit(gradient).lower(logits, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2.5 * 4 * 2 * 257 * 257 * 21


@pytest.mark.parametrize("case", REFERENCE)
def test_the_loss_and_its_gradient_equal_the_reference(case):
    golden, expected = np.load(GOLDEN / "fn_loss.npz"), REFERENCE[case]
    options = {{"loss_weight": "class_weights"}.get(k, k): v for k, v in expected["kwargs"].items()}
    labels = jnp.asarray(golden["labels"][..., 0])

    @jax.value_and_grad
    def loss(logits):
        return losses.training_loss(logits, labels, LOSS | options, expected["global_step"])

    value, gradient = loss(jnp.asarray(golden["logits"]))
    np.testing.assert_allclose(value, expected["loss"], rtol=1e-6)
    scale = np.abs(golden[f"grad_{case}"]).max()
    np.testing.assert_allclose(gradient / scale, golden[f"grad_{case}"] / scale, atol=1e-5)


CHOICES = {
    "class_weights": (0.5, 2.0, 0.0, 1.0),
    "label_smoothing": 0.1,
    "hardest": 0.3,
    "upsample_logits": False,
}


@pytest.mark.parametrize(
    "names", [[name] for name in CHOICES] + [list(CHOICES), list(CHOICES)[:3]], ids="+".join
)
def test_every_choice_has_the_gradient_of_finite_differences(names):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        logits = 3 * rng.standard_normal((2, 5, 6, 4))
        labels = jnp.asarray(rng.choice([0, 1, 2, 3, 255], (2, 17, 21)))
        choices = {name: CHOICES[name] for name in names}

        @jax.jit
        def loss(logits):
            return losses.softmax_cross_entropy(logits, labels, **choices)[0]

        gradient = jax.grad(loss)(logits)
        for _ in range(3):
            direction = rng.standard_normal(logits.shape)
            slope = (loss(logits + 1e-6 * direction) - loss(logits - 1e-6 * direction)) / 2e-6
            np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-5)


def test_label_smoothing_is_that_of_optax():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 5, 6))
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, 4), 0.2)
    expected = optax.softmax_cross_entropy(logits, smooth).sum()
    total, _ = losses.softmax_cross_entropy(
        jnp.asarray(logits), jnp.asarray(labels), label_smoothing=0.2
    )
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def sorted_loss(logits, labels, count):
    """Mean of those among the `count` highest losses that are above 0, by hand."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    highest = np.sort(np.ravel(each))[::-1][:count]
    return highest.sum() / np.count_nonzero(highest)


def test_mining_narrows_in_a_line_to_the_hardest_pixels_of_the_whole_batch():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, 10, 10, 3)).astype(np.float32)
    logits[2] *= 9  # the hardest pixels are mostly those of one image
    labels = rng.integers(0, 3, (4, 10, 10))
    options = LOSS | {"top_k_percent_pixels": 0.25, "hard_example_mining_step": 100}
    loss = jax.jit(lambda x, y, step: losses.training_loss(x, y, options, step))
    split = runtime.shard_batch((logits, labels), runtime.data_mesh())
    for step, count in ((0, 400), (50, 250), (100, 100), (10_000, 100)):
        for arrays in ((logits, labels), split):
            np.testing.assert_allclose(
                loss(*arrays, step), sorted_loss(logits, labels, count), rtol=1e-5
            )


def test_mined_pixels_that_tie_share_the_places():
    labels = jnp.zeros((2, 4, 4), jnp.int32)
    gradient = jax.grad(lambda x: losses.softmax_cross_entropy(x, labels, hardest=0.25)[0])(
        jnp.zeros((2, 4, 4, 2))
    )
    np.testing.assert_allclose(gradient, np.broadcast_to([-0.125, 0.125], gradient.shape))


def test_mining_more_pixels_than_are_labelled_counts_the_labelled():
    labels = np.full((1, 4, 4), 255)
    labels[0, 0] = 1
    total, count = losses.softmax_cross_entropy(
        jnp.zeros((1, 4, 4, 2)), jnp.asarray(labels), hardest=0.5
    )
    assert float(count) == 4
    np.testing.assert_allclose(total, 4 * np.log(2), rtol=1e-6)


def test_outputs_are_summed_and_an_auxiliary_one_weighs_less():
    rng = np.random.default_rng(0)
    logits = {
        name: rng.standard_normal((1, n, n, 3)).astype(np.float32)
        for name, n in (("logits", 9), ("logits_0.5", 5), ("auxiliary", 3))
    }
    labels = jnp.asarray(rng.integers(0, 3, (1, 17, 17)))
    each = {name: losses.training_loss(x, labels, LOSS, 0) for name, x in logits.items()}
    expected = each["logits"] + each["logits_0.5"] + 0.4 * each["auxiliary"]
    np.testing.assert_allclose(losses.training_loss(logits, labels, LOSS, 0), expected, rtol=1e-6)


def test_c12_a_batch_of_void_has_no_loss_and_no_gradient():
    logits, labels = jnp.ones((1, 3, 3, 2)), jnp.full((1, 9, 9), 255)

    def loss(logits):
        total, count = losses.softmax_cross_entropy(logits, labels)
        return total / jnp.maximum(count, 1)

    value, gradient = jax.value_and_grad(loss)(logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_logits_are_upsampled_to_the_labels():
    logits = jnp.array([0.0, 2.0]).reshape(1, 1, 2, 1)
    logits = jnp.concatenate([logits, jnp.zeros_like(logits)], axis=-1)
    total, _ = losses.softmax_cross_entropy(logits, jnp.zeros((1, 1, 3), jnp.int32))
    expected = sum(np.log1p(np.exp(-x)) for x in (0.0, 1.0, 2.0))
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_confusion_counts_pairs_and_leaves_void_out():
    labels = np.array([[0, 1, 1], [2, 255, 1]], np.uint8)
    preds = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)
    counts = metrics.confusion(labels, preds, 4)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, [[1, 0, 0, 0], [0, 2, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(metrics.class_iou(counts), [1, 2 / 3, 1 / 2, np.nan])
    np.testing.assert_allclose(metrics.mean_iou(counts), (1 + 2 / 3 + 1 / 2) / 3)
    np.testing.assert_allclose(metrics.mean_iou(counts, (0, 2, 3)), 0.75)
    np.testing.assert_allclose(metrics.pixel_accuracy(counts), 4 / 5)


def test_confusion_refuses_ids_that_would_vanish():
    with pytest.raises(ValueError, match=r"label ids 0\.\.7"):
        metrics.confusion(np.array([0, 7]), np.array([0, 0]), 3)
    with pytest.raises(ValueError, match="prediction ids"):
        metrics.confusion(np.array([0, 1]), np.array([0, 255]), 3)


def test_an_empty_set_has_no_mean():
    empty = np.zeros((3, 3), np.int64)
    assert np.isnan(metrics.mean_iou(empty))
    assert np.isnan(metrics.pixel_accuracy(empty))


def test_boundary_distance_grows_from_void_and_from_touching_labels():
    labels = np.zeros((9, 20), np.uint8)
    labels[:, 4] = 255
    labels[:, 5:14] = 1
    labels[:, 14:] = 2
    row = metrics.boundary_distance(labels)[4]
    np.testing.assert_array_equal(row[:8], [4, 3, 2, 1, 0, 1, 2, 3])
    np.testing.assert_array_equal(row[11:17], [2, 1, 0, 0, 1, 2])
    assert np.isinf(metrics.boundary_distance(np.zeros((3, 3), np.uint8))).all()


def test_trimap_of_width_w_is_the_dilated_void():
    labels = np.zeros((30, 30), np.uint8)
    labels[10:20, 10] = 255
    disk = np.hypot(*np.mgrid[-3:4, -3:4]) <= 3
    dilated = ndimage.binary_dilation(labels == 255, disk)
    np.testing.assert_array_equal(metrics.boundary_distance(labels) <= 3, dilated)


def test_the_best_labels_of_a_stride():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (37, 50)).astype(np.uint8)
    labels[labels == 3] = 255
    for way in ("nearest", "bilinear", "area"):
        np.testing.assert_array_equal(
            metrics.coarsened(labels, 1, way), np.where(labels == 255, 0, labels)
        )
    # An even factor: cells of 4x4, whose "middle" is the third row and column.
    coarse = metrics.coarsened(labels, 4, "nearest")
    middles = labels[2::4, 2::4][:9, :12]
    np.testing.assert_array_equal(coarse[:36:4, :48:4], np.where(middles == 255, 0, middles))
    np.testing.assert_array_equal(coarse[:36, :48], np.kron(coarse[:36:4, :48:4], np.ones((4, 4))))
    with pytest.raises(ValueError, match="cubic"):
        metrics.coarsened(labels, 4, "cubic")


def test_a_straight_edge_is_found_between_the_cells_it_runs_through():
    labels = np.zeros((16, 24), np.uint8)
    labels[:, 9:] = 1  # the edge, 1 px into the cell of columns 8 to 15
    # The middles, columns 4 and 12, are of either side: half way between them is their edge.
    assert (metrics.coarsened(labels, 8, "bilinear")[0] == 1).argmax() == 8
    # The share of 7 columns of 8 tells where it really is.
    assert (metrics.coarsened(labels, 8, "area")[0] == 1).argmax() == 9
    assert (metrics.coarsened(labels, 8, "nearest")[0] == 1).argmax() == 8
    tally = evaluate.Tally(2, 255, upper_bounds=(8, 1))
    tally.add(labels, np.zeros_like(labels))
    bounds = tally.results(("background", "right"))["upper_bounds"]
    wrong = 16  # pixels of column 8, seen as class 1
    right = 15 * 16
    expected = np.mean([(8 * 16) / (8 * 16 + wrong), right / (right + wrong)])
    assert bounds == {"8": pytest.approx(expected), "1": 1.0}


def test_a_subset_of_the_classes_has_figures_of_its_own_near_boundaries_too():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 6)).repeat(5, 0).repeat(5, 1)
    preds = np.where(labels == 2, 0, labels)
    tally = evaluate.Tally(3, 255, (1, 40))
    tally.add(labels, preds)
    figures = tally.results(("a", "b", "c"), (1, 2))
    assert figures["mean_iou_2"] == 0.5 == figures["trimap_mean_iou_2"]["40"]
    near = metrics.boundary_distance(labels, 255) <= 1
    expected = metrics.mean_iou(metrics.confusion(labels[near], preds[near], 3), (1, 2))
    assert figures["trimap_mean_iou_2"]["1"] == expected
    assert figures["trimap_mean_iou"]["1"] != expected


def test_figures_equal_a_computation_from_sets_of_pixels():
    """VOC's and Cityscapes' scripts define them by intersections and unions; so does this."""
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 4, 255], (3, 30, 40), p=[0.5, 0.2, 0.1, 0.1, 0.1])
    given = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape))
    given[given == 255] = 0
    counts = sum(metrics.confusion(t, g, 6) for t, g in zip(truth, given))

    seen = {tuple(p) for p in np.argwhere(truth != 255)}
    of_class = [{tuple(p) for p in np.argwhere(truth == c)} for c in range(6)]
    as_class = [{tuple(p) for p in np.argwhere(given == c)} & seen for c in range(6)]
    iou = [len(t & g) / len(t | g) if t | g else np.nan for t, g in zip(of_class, as_class)]
    hits = sum(len(t & g) for t, g in zip(of_class, as_class))
    accuracy = [len(t & g) / len(t) for t, g in zip(of_class, as_class) if t]
    weighted = sum(len(t) * i for t, i in zip(of_class, iou) if t) / len(seen)
    np.testing.assert_allclose(metrics.class_iou(counts), iou)
    np.testing.assert_allclose(metrics.mean_iou(counts), np.nanmean(iou))
    np.testing.assert_allclose(metrics.mean_iou(counts, range(1, 6)), np.nanmean(iou[1:]))
    np.testing.assert_allclose(metrics.pixel_accuracy(counts), hits / len(seen))
    np.testing.assert_allclose(metrics.mean_accuracy(counts), np.mean(accuracy))
    np.testing.assert_allclose(metrics.frequency_weighted_iou(counts), weighted)


def test_boundary_iou_counts_what_erosion_takes_away():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (5, 6)), np.ones((12, 12), int))
    given = np.roll(truth, 3, axis=1)
    truth[20:24, 30:40] = 255
    counts = metrics.boundary_counts(truth, given, 4, dilation_ratio=0.04)
    reach = round(0.04 * np.hypot(60, 72))
    for c in range(3):
        inner = []
        for ids in (truth, given):
            mask = (ids == c) & (truth != 255)
            eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=reach)
            inner.append(mask & ~eroded)
        assert counts[c].tolist() == [(inner[0] & inner[1]).sum(), (inner[0] | inner[1]).sum()]
        assert 0 < counts[c, 0] < counts[c, 1]
    assert counts[3].tolist() == [0, 0]
    assert (np.diff(metrics.boundary_counts(given, given, 4)) == 0).all()
