"""Fields of view from gradients are those that kernels and rates promise, and no larger."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from deeplab_jax.field_of_view import fields_of_view
from deeplab_jax.models.aspp import ASPP
from deeplab_jax.models.layers import BatchNorm, ConvBN, Logits

RATE = 4
MIDDLE = 8  # of features of 17x17, of images of 33x33 at stride 2
IMAGES = jax.random.normal(jax.random.key(0), (1, 33, 33, 3)) / 10


class Small(nn.Module):
    """A convolution of stride 2, an ASPP of one rate, a classifier of one class."""

    @nn.compact
    def __call__(self, x):
        norm = partial(BatchNorm, 0.9, 1e-5)
        x = ConvBN(4, norm, kernel_size=3, stride=2, padding="fixed", name="stem")(x, False)
        aspp = ASPP((RATE,), 4, True, True, True, norm, name="aspp")
        return {"logits": Logits(1, name="logits")(aspp(x, False, lambda x: x))}


@pytest.fixture(scope="module")
def variables():
    """Random, with biases that keep every ReLU open: what is connected has a gradient."""
    fresh = jax.jit(Small().init)(jax.random.key(1), IMAGES)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 5.0 if "bias" in str(path[-1]) else leaf, fresh
    )


@pytest.fixture(scope="module")
def fields(variables):
    return partial(fields_of_view, Small(), variables, IMAGES)


@pytest.fixture(scope="module")
def of_features(fields):
    return fields(["aspp/conv1x1", "aspp/atrous1", "aspp/image_pooling"], "aspp")


@pytest.fixture(scope="module")
def of_image(fields):
    return fields(["aspp/atrous1", ""])


def test_a_branch_sees_the_nine_features_at_its_rate(of_features):
    seen = of_features["aspp/atrous1"]
    taps = [MIDDLE - RATE, MIDDLE, MIDDLE + RATE]
    expected = np.zeros((17, 17), bool)
    expected[np.ix_(taps, taps)] = True
    assert seen.max() == 1
    np.testing.assert_array_equal(seen > 0, expected)


def test_the_1x1_branch_sees_one_feature_and_image_pooling_all(of_features):
    assert np.argwhere(of_features["aspp/conv1x1"]).tolist() == [[MIDDLE, MIDDLE]]
    np.testing.assert_allclose(of_features["aspp/image_pooling"], np.ones((17, 17)), rtol=1e-5)


def test_in_pixels_each_tap_is_as_wide_as_what_lies_before(of_image):
    rows = [2 * MIDDLE + 2 * shift + i for shift in (-RATE, 0, RATE) for i in (-1, 0, 1)]
    expected = np.zeros((33, 33), bool)
    expected[np.ix_(rows, rows)] = True
    np.testing.assert_array_equal(of_image["aspp/atrous1"] > 0, expected)


def test_the_networks_field_is_the_gradient_of_its_middle_logit(of_image, variables):
    def logit(images):
        return Small().apply(variables, images)["logits"][0, MIDDLE, MIDDLE, 0]

    gradient = np.asarray(jax.jit(jax.grad(logit))(IMAGES))[0]
    expected = np.sqrt(np.square(gradient).sum(-1))
    np.testing.assert_allclose(of_image[""], expected / expected.max(), rtol=1e-4, atol=1e-6)
    assert (of_image[""] > 0).all()  # by image pooling


def test_an_unknown_layer(fields):
    with pytest.raises(ValueError, match=r"no layer 'aspp/atrous2' \(did you mean 'aspp/atrous"):
        fields(["", "aspp/atrous2"])
    with pytest.raises(ValueError, match="no layer 'decoder'"):
        fields(["aspp"], "decoder")


class Endpoints(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"low_level_4": x, "features": nn.Dense(2)(x)}


class OfEndpoints(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Endpoints(name="backbone")(x)["features"]


def test_a_layer_of_several_outputs():
    images = np.ones((1, 5, 5, 3), np.float32)
    variables = OfEndpoints().init(jax.random.key(0), images)
    with pytest.raises(ValueError, match="'backbone' gives several outputs: low_level_4, features"):
        fields_of_view(OfEndpoints(), variables, images, ["backbone"])
