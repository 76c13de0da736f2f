"""Evaluation sees images as prediction does: whole, in tiles, at another size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS

from deeplab_jax import config as configuration
from deeplab_jax import evaluate, metrics, ops, predict, runtime
from deeplab_jax.data import pipeline
from deeplab_jax.errors import ConfigError

SCENES = f"{CONFIGS}/v3plus.py"


class Tiny(nn.Module):
    """A network of stride 8 that compiles at once, and pools over what it sees."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(8, (9, 9), strides=8)(images))
        return nn.Dense(9)(x - x.mean(axis=(1, 2), keepdims=True))


@pytest.fixture(scope="module")
def setting():
    config = configuration.load(SCENES)
    variables = Tiny().init(jax.random.key(0), jnp.zeros((1, 65, 65, 3)))
    full = pipeline.source(config.data, "val", config.model.num_classes)
    return Tiny(), variables, [full[i] for i in range(2)]


@pytest.mark.parametrize(
    "given",
    [
        {"tile_size": (129, 129), "tile_overlap": 32},
        {"resize": 129},
        {"resize": (129, 97)},
    ],
)
def test_every_image_is_seen_as_predict_would(setting, given):
    module, variables, source = setting
    given = {f"{mode}.{key}": given[key] for mode in ("eval", "predict") for key in given}
    config = configuration.load(SCENES, given)
    configuration.check(config)
    labels = pipeline.class_labels(config.data, config.model.num_classes)
    found = evaluate.evaluate(
        module, variables, source, config, labels, mesh=runtime.data_mesh(), panels=1
    )
    total, changed = 0, 0
    for example in source:
        options = configuration.predict_options(config) | {"raw_ids": None}
        pred = predict.predict(module, variables, example["image"], **options)
        total = total + metrics.confusion(example["label"], pred, config.model.num_classes)
        whole = options | {"tile_size": None, "resize": None}
        changed += (pred != predict.predict(module, variables, example["image"], **whole)).sum()
    np.testing.assert_array_equal(found.tally.total, total)
    assert changed  # it was not seen whole and at its own size
    shown = evaluate.settings(config, "none", len(source))
    assert "129" in str(shown["resized to"] or shown["padded to"])


def test_resizing_there_and_back_is_of_probabilities(setting):
    module, variables, (example, _) = setting
    options = {"align_corners": True, "normalization": "zero_mean"}
    image = example["image"]
    own = predict.predict(module, variables, image, resize=image.shape[:2], **options)
    np.testing.assert_array_equal(own, predict.predict(module, variables, image, **options))
    small = predict._resized(image, 97)
    assert max(small.shape[:2]) == 97
    padded = predict._batch([small], None, "zero_mean")
    probs = predict.probability_maps(module, variables, padded, **options)
    probs = probs[:, : small.shape[0], : small.shape[1]]
    expected = ops.resize_bilinear(probs, image.shape[:2], True)[0].argmax(-1)
    ours = predict.predict(module, variables, image, resize=97, **options)
    np.testing.assert_array_equal(ours, jax.device_get(expected))


def test_the_whole_section_is_what_predict_takes(setting):
    module, variables, (example, _) = setting
    config = configuration.load(SCENES, {"predict.outputs": ("colours",), "predict.batch_size": 4})
    options = configuration.predict_options(config)
    np.testing.assert_array_equal(
        predict.predict(module, variables, example["image"], **config.predict),
        predict.predict(module, variables, example["image"], **options),
    )


def test_images_of_one_batch_are_seen_at_one_size(setting):
    module, variables, (example, _) = setting
    images = [example["image"], example["image"][:60]]
    with pytest.raises(ValueError, match="seen at one size"):
        predict.answers(module, variables, images, align_corners=True)


@pytest.mark.parametrize("key", ["eval.resize", "predict.resize"])
def test_sizes_that_do_not_go_together_are_refused(key):
    config = configuration.load(SCENES, {key: (65, 65)})
    mode = key.split(".")[0]
    config.update_from_flattened_dict({f"{mode}.tile_size": (65, 65), f"{mode}.tile_overlap": 8})
    with pytest.raises(ConfigError, match=f"does not go with {key}"):
        configuration.check(config)
    config = configuration.load(SCENES, {key: "large"})
    with pytest.raises(ConfigError, match=f"{key}='large'"):
        configuration.check(config)


def test_the_crf_is_not_evaluated_at_another_size():
    config = configuration.load(SCENES, {"eval.resize": 65, "eval.crf": True})
    with pytest.raises(ConfigError, match=r"eval\.resize: the CRF"):
        configuration.check(config)
