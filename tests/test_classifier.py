"""Image classifiers: their graphs, their evaluation, and networks that start from their weights."""

import json

import flax.linen as nn
import imagenet
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax.traverse_util import flatten_dict
from test_models import count

from deeplab_jax import advice, checkpoint, classify, importers, main, models, optim, runtime
from deeplab_jax import config as configuration
from deeplab_jax.data import synthetic
from deeplab_jax.data.classification import CentralCrops
from deeplab_jax.data.labels import labels
from deeplab_jax.errors import ConfigError, WeightsError

# torchvision's counts of its classifiers of 1000 classes (GoogLeNet's without auxiliary ones).
PARAMETERS = {
    "alexnet": 61_100_840,
    "googlenet": 6_624_904,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "resnet_50": 25_557_032,
    "resnet_101": 44_549_160,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
}
QUICK = {
    "train.steps": 3,
    "train.batch_size": 4,
    "train.eval_every": 2,
    "log_every": 1,
    "model.width_multiplier": 0.25,
    "data.crop_size": (49, 49),
    "eval.crop_size": (49, 49),
    "eval.batch_size": 8,
}


def tree_of(module, channels=3, size=65):
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return {"batch_stats": {}} | jax.eval_shape(module.init, jax.random.key(0), image)


def drawn(module, seed=0):
    """Variables that differ everywhere, biases and statistics included."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.2, leaf.shape).astype(np.float32), tree_of(module)
    )


def flat(variables):
    return {"/".join(path): array for path, array in flatten_dict(variables).items()}


@pytest.mark.parametrize("backbone", models.BACKBONES)
def test_every_backbone_has_a_preset_whose_classifier_gives_one_pixel_of_scores(backbone):
    config = imagenet.get_config(f"{backbone},imagenet")
    configuration.check(config)
    module = models.build(**config.model)
    scores, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((2, 65, 97, 3)))
    )
    assert scores.shape == (2, 1, 1, 1000)
    assert scores.dtype == jnp.float32
    if backbone in PARAMETERS:
        assert count(variables["params"]) == PARAMETERS[backbone]


def test_presets_are_exactly_the_backbones():
    assert set(imagenet.VARIANTS) == set(models.BACKBONES)


def test_the_recipe_of_table_4():
    config = imagenet.get_config("xception_65,imagenet")
    optim = config.optim
    assert (config.data.crop_size, optim.learning_rate, optim.momentum) == ((299, 299), 0.05, 0.9)
    assert (optim.nesterov, optim.weight_decay) == (True, 4e-5)
    assert (optim.schedule, optim.learning_rate_decay_factor) == ("step", 0.94)
    for batch in (32, 256):
        config.train.batch_size = batch
        assert optim.learning_rate_decay_step == 2 * 1_281_167 // batch
        assert config.train.steps == 100 * 1_281_167 // batch
        assert config.train.eval_every == config.train.checkpoint_every == 1_281_167 // batch
    config.train.eval_every = 0
    assert config.train.checkpoint_every == 1_281_167 // 256


def test_presets_of_few_images_train_for_their_epochs():
    config = imagenet.get_config("resnet_50")
    assert (config.train.steps, config.train.checkpoint_every) == (10 * 4000 // 32, 4000 // 32)
    config = imagenet.get_config("resnet_50,image_folder")
    assert (config.train.steps, config.optim.schedule) == (30_000, "cosine")


def test_alexnets_classifier_sees_one_window_of_its_crop():
    config = imagenet.get_config("alexnet,imagenet")
    module = models.build(**config.model)
    variables = tree_of(module, size=224)
    _, found = jax.eval_shape(
        lambda v: module.apply(
            v, jnp.zeros((1, 224, 224, 3)), capture_intermediates=True, mutable=["intermediates"]
        ),
        variables,
    )
    (fc7,) = found["intermediates"]["fc7"]["__call__"]
    assert fc7.shape == (1, 1, 1, 4096)


def test_a_classifier_refuses_what_does_not_apply():
    for wrong in (
        {"output_stride": 16},
        {"heads": {"geometry": 3}},
        {"input_scales": (0.5, 1.0)},
        {"channel_groups": (3, 3)},
    ):
        with pytest.raises(ValueError, match="classifier"):
            models.build("classifier", "mobilenet_v2", 10, **({"output_stride": 32} | wrong))


def test_fcn_started_from_a_classifier_gives_its_scores_on_a_crop_of_its_size():
    """fc6 sees the whole crop in the middle of the fully convolutional net's scores."""
    size = {"num_classes": 5, "output_stride": 32, "fc_channels": 24}
    classifier = models.build("classifier", "vgg16", **size)
    images = jax.random.normal(jax.random.key(1), (1, 224, 224, 3))
    variables = {"batch_stats": {}} | jax.jit(classifier.init)(jax.random.key(0), images)
    fcn = models.build("fcn", "vgg16", **size, decoder_output_stride=None)
    started = importers.load(flat(variables), jax.device_get(tree_values(fcn)))
    scoring = variables["params"]["classifier"]
    scores = fcn.apply({"params": started["params"] | {"logits": scoring}}, images)
    wanted = classifier.apply(variables, images)
    assert scores.shape == (1, 7, 7, 5)
    np.testing.assert_allclose(scores[:, 3:4, 3:4], wanted, atol=1e-6 + 1e-5 * np.abs(wanted).max())
    assert np.abs(scores[:, 0, 0] - wanted[:, 0, 0]).max() > 1e-3 * np.abs(wanted).max()


def tree_values(module):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), tree_of(module))


def test_a_classifier_of_larger_images_averages_the_scores_of_all_windows():
    module = models.build("classifier", "alexnet", 4, output_stride=32, fc_channels=8)
    images = jax.random.normal(jax.random.key(1), (1, 288, 256, 3))
    variables = {"batch_stats": {}} | jax.jit(module.init)(jax.random.key(0), images)
    fcn = models.build("fcn", "alexnet", 4, output_stride=32, fc_channels=8,
                       decoder_output_stride=None)  # fmt: skip
    started = importers.load(flat(variables), tree_values(fcn))
    params = started["params"] | {"logits": variables["params"]["classifier"]}
    dense = fcn.apply({"params": params}, images)  # 9 x 8 features, fc6's 6x6 padded by 3 and 2
    inside = dense[:, 3:-2, 3:-2].mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(module.apply(variables, images), inside, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["v3plus", "v3", "fcn", "v2"])
def test_any_network_starts_from_a_classifiers_backbone(name):
    small = {"output_stride": 32, "width_multiplier": 0.25}
    weights = drawn(models.build("classifier", "mobilenet_v2", 7, **small))
    network = models.build(name, "mobilenet_v2", 3, width_multiplier=0.25, aspp_channels=8)
    target = tree_values(network)
    said = []
    started = importers.load(flat(weights), target, log=said.append)
    for group in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, started[group]["backbone"], weights[group]["backbone"]
        )
    head = {key: leaves for key, leaves in started["params"].items() if key != "backbone"}
    assert head
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(head))
    assert any("the classifier's last layers" in sentence for sentence in said)
    assert any(sentence.startswith("left as initialised") for sentence in said)


def test_v1_thins_a_classifiers_fully_connected_layers():
    weights = drawn(models.build("classifier", "vgg16", 7, output_stride=32, fc_channels=40))
    network = models.build("v1", "vgg16", 3, output_stride=8, fc_channels=10)
    started = importers.load(flat(weights), tree_values(network))["params"]
    assert started["fc6"]["kernel"].shape == (3, 3, 512, 10)
    kept = importers.vgg.filters(6, 10, 40)
    whole = weights["params"]["fc6"]
    np.testing.assert_array_equal(started["fc6"]["bias"], whole["bias"][kept])
    np.testing.assert_array_equal(started["fc6"]["kernel"], whole["kernel"][::3, ::3][..., kept])


def test_a_classifier_starts_from_another_with_other_classes():
    def make(classes):
        return models.build("classifier", "mobilenet_v3_small", classes, output_stride=32)

    weights = drawn(make(5))
    same = importers.load(flat(weights), tree_values(make(5)))
    jax.tree.map(np.testing.assert_array_equal, same, weights)
    other = importers.load(flat(weights), tree_values(make(6)))
    assert (other["params"]["classifier"]["kernel"] == 0).all()
    np.testing.assert_array_equal(
        other["params"]["last"]["kernel"], weights["params"]["last"]["kernel"]
    )


def test_another_backbone_is_refused():
    weights = drawn(models.build("classifier", "mobilenet_v2", 5, output_stride=32))
    network = models.build("v3", "mobilenet_v3_small", 3)
    with pytest.raises(WeightsError, match="does not fit the model"):
        importers.load(flat(weights), tree_values(network))


class Brightness(nn.Module):
    """Scores 0..9 by how near a tenth of the grey scale is to the mean of the image's left."""

    def __call__(self, images):
        mean = images[:, :, : images.shape[2] // 2].mean(axis=(1, 2, 3)) * 127.5 + 127.5
        return -3 * jnp.abs(mean[:, None] / 25 - jnp.arange(10.0))[:, None, None]


class Greys:
    """Images of one grey, whose label is off by `off` classes."""

    def __init__(self, offs):
        self.offs = offs

    def __len__(self):
        return len(self.offs)

    def __getitem__(self, index):
        true = 4
        image = np.full((20 + index, 30, 3), 25 * true + 3, np.uint8)
        image[:, 15:] += np.uint8(60)
        return {"image": image, "label": np.array([[true + self.offs[index]]]), "name": "x"}


def central(offs):
    return CentralCrops(Greys(offs), (16, 16), 1.0)[0]["image"][None]


@pytest.mark.parametrize("mirrored", [False, True])
def test_errors_are_counted_over_the_whole_split(mirrored):
    # 103 / 25 = 4.12: the five likeliest are 4, 5, 3, 6, 2. The mirror image, 6.52, is about as
    # likely 6 as 7: of both together they are 4, 7, 6, 5, 3.
    offs = [0, 0, 0, 1, -2, 3, -3]
    config = imagenet.get_config()
    config.model.num_classes = 10
    config.eval.batch_size = 2
    config.eval.add_flipped_images = mirrored
    names = labels([f"grey {i}" for i in range(10)])
    found = classify.evaluate(
        Brightness(), {}, Greys(offs), config, names, mesh=runtime.data_mesh(), panels=3
    )
    figures = found.figures
    assert figures["top_1_error"] == pytest.approx(4 / 7)
    # Labels 2 and 7 are among the five likeliest of one view each.
    assert figures["top_5_error"] == pytest.approx(2 / 7)
    best, probs = classify._likeliest(
        Brightness(), {}, jnp.asarray(central(offs)), normalization="zero_mean", mirrored=mirrored
    )
    assert (7 in best[0].tolist(), 2 in best[0].tolist()) == (mirrored, not mirrored)
    assert float(probs[0, 0]) < (0.5 if mirrored else 1)
    assert figures["error"]["grey 4"] == 0
    assert figures["error"]["grey 7"] == 1
    assert np.isnan(figures["error"]["grey 0"])
    assert len(found.tiles) == 3
    text = classify.table(figures)
    assert "top-1 error: 57.14 %" in text
    assert "grey 0" not in text


def test_pretraining_then_segmentation_from_its_workdir(
    tmp_path, capsys, monkeypatch, fewest_layers
):
    for split in synthetic.SPLITS:  # drawing 3000 scenes takes minutes
        monkeypatch.setitem(synthetic.SPLITS, split, 12)
    config = configuration.load(f"{ROOT}/configs/imagenet.py", QUICK)
    figures = main.run(config, "train", tmp_path / "shapes")
    assert 0 <= figures["top_5_error"] <= figures["top_1_error"] <= 1
    lines = [json.loads(x) for x in (tmp_path / "shapes/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "top_1_error" in x] == [2, 3]
    assert all(np.isfinite(x["loss"]) for x in lines if "loss" in x)
    for name in ("results.json", "panel.png"):
        assert (tmp_path / "shapes/eval" / name).is_file()
    again = main.run(config, "eval", tmp_path / "shapes")
    assert again["top_1_error"] == figures["top_1_error"]

    small = {
        "init_from": str(tmp_path / "shapes"),
        "train.steps": 1,
        "train.batch_size": 4,
        "train.eval_every": 0,
        "model.width_multiplier": 0.25,
        "model.aspp_channels": 16,
        "model.atrous_rates": None,
        "model.decoder_output_stride": None,
        "optim.learning_rate": 0.0,
        "eval.batch_size": 8,
        "eval.panels": 0,
        "eval.trimap_widths": (),
    }
    network = configuration.load(f"{ROOT}/configs/v3plus.py", small)
    capsys.readouterr()
    main.run(network, "train", tmp_path / "v3plus")
    said = capsys.readouterr().out
    assert "deeplab_jax classifier, as a trunk" in said
    assert "left as initialised" in said
    was, _ = checkpoint.read_variables(tmp_path / "shapes")
    now, _ = checkpoint.read_variables(tmp_path / "v3plus")
    for place, leaf in flatten_dict(was["params"]["backbone"]).items():
        np.testing.assert_array_equal(flatten_dict(now["params"]["backbone"])[place], leaf)

    network.data.normalization, network.model.padding = "imagenet", "fixed"
    warnings = advice.before_loading(network, tmp_path / "shapes")
    assert [w.split()[5] for w in warnings] == [
        "data.normalization=zero_mean,",
        "model.padding=same,",
    ]
    assert advice.before_loading(network, tmp_path) == []


@pytest.mark.parametrize("mode", ["predict", "check_data", "tune_crf"])
def test_modes_of_label_maps_say_that_a_classifier_has_none(mode, tmp_path):
    with pytest.raises(ConfigError, match="label maps"):
        main.run(configuration.load(f"{ROOT}/configs/imagenet.py"), mode, tmp_path)


@pytest.mark.parametrize(
    ("file", "overrides", "says"),
    [
        ("imagenet.py", {"data.name": "synthetic"}, "does not go with data.name"),
        ("v3plus.py", {"data.name": "shapes"}, "does not go with data.name"),
        ("imagenet.py", {"data.ignore_label": 2}, "set it to -1"),
        ("imagenet.py", {"eval.eval_scales": (0.5, 1.0)}, "eval_scales"),
        ("imagenet.py", {"eval.crop_size": None}, "one size"),
        ("imagenet.py", {"data.min_crop_area": 0.0}, "min_crop_area"),
        ("imagenet.py", {"data.max_aspect_ratio": 0.5}, "max_aspect_ratio"),
        ("imagenet.py", {"data.color_jitter": 1.5}, "color_jitter"),
        ("imagenet.py", {"eval.central_fraction": 1.5}, "central_fraction"),
        ("imagenet.py", {"eval.crf": True}, r"eval\.crf is of label maps"),
        ("imagenet.py", {"eval.class_subset": (0, 1)}, "class_subset is of label maps"),
        ("imagenet.py", {"loss.class_weights": "median_frequency"}, "a number a class"),
        ("imagenet.py", {"model.num_classes": 70000}, "1 to 65536 classes"),
    ],
)
def test_settings_are_checked(file, overrides, says):
    config = configuration.load(f"{ROOT}/configs/{file}", overrides)
    with pytest.raises(ConfigError, match=says):
        configuration.check(config)


def test_the_shapes_classes_are_six(tmp_path):
    config = configuration.load(f"{ROOT}/configs/imagenet.py", QUICK | {"model.num_classes": 3})
    with pytest.raises(ConfigError, match=r"model\.num_classes=6"):
        main.run(config, "train", tmp_path)


def test_a_last_layers_multiplier_finds_the_classifier():
    config = imagenet.get_config()
    config.optim.last_layers_contain_logits_only = True
    config.optim.last_layer_gradient_multiplier = 0.0
    config.optim.weight_decay = 0.0
    params = drawn(models.build("classifier", "mobilenet_v2", 3, output_stride=32))["params"]
    chain = optim.optimizer(params, optim.schedule(config.optim, 10), config.optim)
    updates, _ = chain.update(params, chain.init(params), params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates["classifier"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(updates["last"]))
