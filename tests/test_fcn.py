"""[FCN]: classifiers made convolutional, skips, sampled losses, several heads and channels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax.traverse_util import flatten_dict
from test_models import count, randomised, shapes
from test_train import small
from test_vgg import pictures, support, thin  # noqa: F401

from deeplab_jax import advice, importers, losses, main, models, ops, optim
from deeplab_jax import config as configuration
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.models import fcn
from deeplab_jax.models.alexnet import AlexNet
from deeplab_jax.models.fusion import LateFusion
from deeplab_jax.models.googlenet import MODULES, GoogLeNet
from deeplab_jax.models.layers import BatchNorm, Logits

PRESETS = ("alexnet_32s", "googlenet_32s", "vgg16_32s", "vgg16_16s", "vgg16_8s")
# [FCN] Table 1: parameters in millions, receptive field in px.
TABLE = {"alexnet": (57, 355), "vgg16": (134, 404), "googlenet": (6, 907)}


def build(backbone="vgg16", skips=None, **keywords):
    keywords = {"num_classes": 5, "fc_channels": 8, "align_corners": False} | keywords
    return models.build("fcn", backbone, output_stride=32, decoder_output_stride=skips, **keywords)


def preset(name, **overrides):
    return configuration.load(f"{ROOT}/configs/fcn.py:{name},voc", overrides)


# --- Table 1 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", TABLE)
def test_parameters_and_receptive_field_are_the_papers(backbone):
    millions, field = TABLE[backbone]
    module = models.build(**preset(f"{backbone}_32s").model)
    assert round(count(shapes(module)) / 1e6) == millions
    assert fcn.receptive_field(fcn.LAYERS[backbone]) == field
    assert np.prod([stride for _, stride in fcn.LAYERS[backbone]]) == 32


def test_googlenet_in_numbers_of_its_paper():
    """arXiv 1409.4842 Table 1: channels behind each module; 6.0M weights without the classifier."""
    channels = [plain + m[1] + w[1] + pooled for plain, m, w, pooled in MODULES.values()]
    assert channels == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    assert count(shapes(build("googlenet_5x5", num_classes=21))["params"]) == 6_002_357


class Positive(BatchNorm):
    """The identity: `support` has all weights positive, and its batch norm would divide by them."""

    def __call__(self, x, train):
        return x


@pytest.mark.parametrize(
    ("kernel_size", "side"),
    [
        (5, 715),  # the table's 907 count an average pooling of 7x7 that the network is without
        (3, 379),  # torchvision's
    ],
)
def test_the_measured_support_of_googlenet(kernel_size, side):
    backbone = partial(GoogLeNet, partial(Positive, 0.9, 1e-3), kernel_size)
    module = fcn.FCN(backbone, None, (), 0.0, partial(Logits, 5))
    assert support(module, side + 192) == (side, side)


def test_the_measured_support_of_alexnet_is_its_receptive_field():
    assert support(build("alexnet"), 672) == (355, 355)


# --- from classifier to FCN --------------------------------------------------------------------


def alexnet_weights(seed=0):
    """torchvision's AlexNet by its names."""
    rng = np.random.default_rng(seed)
    channels = {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }
    linear = {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}
    weights = {}
    for position, (features, inputs, size) in channels.items():
        weights[f"features.{position}.weight"] = (features, inputs, size, size)
        weights[f"features.{position}.bias"] = (features,)
    for position, shape in linear.items():
        weights[f"classifier.{position}.weight"] = shape
        weights[f"classifier.{position}.bias"] = shape[:1]
    return {
        name: rng.standard_normal(shape, np.float32) * np.float32(np.prod(shape[1:]) ** -0.5)
        for name, shape in weights.items()
    }


def test_a_classifier_slid_over_features_is_the_fully_convolutional_net():
    """Sec. 3.1; the windows flattened as torchvision does, fc6 to fc8 as matrices."""
    weights = alexnet_weights()
    module = build("alexnet", fc_channels=4096, padding="fixed")
    assert importers.infer(weights) == {
        "name": "fcn",
        "backbone": "alexnet",
        "output_stride": 32,
    }
    variables = importers.load(weights, shapes(module))
    final = weights["classifier.6.weight"][:5]
    variables["params"]["logits"] = {"kernel": final.T[None, None], "bias": np.zeros(5, np.float32)}
    images = pictures(300, 340)
    features = AlexNet("fixed").apply(
        {"params": variables["params"]["backbone"]}, images, train=False
    )["features"]
    features = np.asarray(features)[0]
    scores = np.asarray(jax.jit(module.apply)(variables, images))[0]
    assert features.shape == (8, 9, 256)  # floor((300 - 31) / 32), as PyTorch counts
    for y in range(3):
        for x in range(4):
            hidden = features[y : y + 6, x : x + 6].transpose(2, 0, 1).reshape(-1)
            for layer in (1, 4):
                hidden = weights[f"classifier.{layer}.weight"] @ hidden
                hidden = np.maximum(hidden + weights[f"classifier.{layer}.bias"], 0)
            np.testing.assert_allclose(scores[y + 3, x + 3], final @ hidden, atol=1e-5)


def test_same_padding_keeps_the_classifiers_features_inside():
    module = AlexNet()
    variables = randomised(
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), False))
    )
    whole, fixed = (
        AlexNet(padding).apply(variables, pictures(512, 512), False)["features"]
        for padding in ("same", "fixed")
    )
    assert whole.shape[1:3] == (16, 16)
    assert fixed.shape[1:3] == (15, 15)
    np.testing.assert_allclose(whole[:, :12, :12], fixed[:, :12, :12], atol=1e-5)


def test_every_array_of_torchvisions_other_classifiers_has_a_place():
    rng = np.random.default_rng(0)

    def norm(name, channels):
        leaves = ("weight", "bias", "running_mean", "running_var")
        arrays = {f"{name}.{leaf}": rng.random(channels, np.float32) for leaf in leaves}
        return arrays | {f"{name}.num_batches_tracked": np.int64(7)}

    def conv(name, features, inputs, size):
        return {f"{name}.weight": rng.random((features, inputs, size, size), np.float32)}

    weights, inputs = {"fc.weight": np.zeros((1000, 1024)), "fc.bias": np.zeros(1000)}, 192
    weights |= {"aux1.conv.conv.weight": np.zeros((128, 512, 1, 1)), "aux2.fc2.bias": np.zeros(9)}
    layers = {"conv1": (64, 3, 7), "conv2": (64, 64, 1), "conv3": (192, 64, 3)}
    for name, (plain, middle, wide, pooled) in MODULES.items():
        at = f"inception{name}"
        layers |= {
            f"{at}.branch1": (plain, inputs, 1),
            f"{at}.branch2.0": (middle[0], inputs, 1),
            f"{at}.branch2.1": (middle[1], middle[0], 3),
            f"{at}.branch3.0": (wide[0], inputs, 1),
            f"{at}.branch3.1": (wide[1], wide[0], 3),
            f"{at}.branch4.1": (pooled, inputs, 1),
        }
        inputs = plain + middle[1] + wide[1] + pooled
    for name, shape in layers.items():
        weights |= conv(f"{name}.conv", *shape) | norm(f"{name}.bn", shape[0])
    target = shapes(build("googlenet"))
    variables = importers.load(weights, target)
    kernel = variables["params"]["backbone"]["inception4c"]["conv5x5"]["kernel"]
    theirs = weights["inception4c.branch3.1.conv.weight"]
    np.testing.assert_array_equal(kernel, theirs.transpose(2, 3, 1, 0))
    assert importers.infer(weights)["backbone"] == "googlenet"

    positions = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    weights, inputs = {}, 3
    for position, features in zip(positions, widths):
        weights |= conv(f"features.{position}", features, inputs, 3)
        weights |= {f"features.{position}.bias": rng.random(features, np.float32)}
        weights |= norm(f"features.{position + 1}", features)
        inputs = features
    assert importers.infer(weights)["backbone"] == "vgg16_bn"
    module = models.build("v1", "vgg16_bn", 5, output_stride=8, fc_channels=8)
    variables = importers.load(weights, shapes(module))
    statistics = variables["batch_stats"]["backbone"]["conv5_3"]["norm"]
    np.testing.assert_array_equal(statistics["var"], weights["features.41.running_var"])


# --- skips -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("skips", "before"), [(16, None), (8, 16)])
def test_each_starts_as_the_one_before(skips, before, thin):  # noqa: F811
    """Sec. 4.2: the fresh scores are zero and the upsampling bilinear."""
    finer, coarser = build(skips=skips, logits_stddev=0.0), build(skips=before)
    images = pictures(120, 165)
    variables = randomised(shapes(coarser))
    fresh = finer.init(jax.random.key(0), images)
    names = {f"{kind}_{skips}" for kind in ("logits", "upsampling")}
    assert fresh["params"].keys() - variables["params"].keys() == names
    source = {
        f"params/{'/'.join(path)}": leaf for path, leaf in flatten_dict(variables["params"]).items()
    }
    loaded = importers.load(source, fresh)
    scores = jax.jit(coarser.apply)(variables, images)
    refined = jax.jit(finer.apply)(loaded, images)
    twice = ops.resize_bilinear(scores, tuple(2 * n for n in scores.shape[1:3]), False)
    twice = twice[:, : refined.shape[1], : refined.shape[2]]
    assert refined.shape[1:3] == (-(-120 // skips), -(-165 // skips))
    np.testing.assert_allclose(refined, twice, atol=1e-5 * np.abs(twice).max())


def test_upsampling_learns_and_reads_shallow_scores(thin):  # noqa: F811
    module, images = build(skips=8), pictures(96, 96)
    variables = randomised(shapes(module))
    gradient = jax.jit(
        jax.grad(lambda params: jnp.sum(module.apply({"params": params}, images) ** 2))
    )(variables["params"])
    for name in ("logits", "logits_16", "logits_8", "upsampling_16", "upsampling_8"):
        assert np.abs(gradient[name]["kernel"]).max() > 0


def test_impossible_choices_are_refused():
    for keywords in (
        {"backbone": "alexnet", "skips": 16},
        {"skips": 4},
        {"backbone": "googlenet", "skips": 8},
    ):
        with pytest.raises(ValueError, match="decoder_output_stride"):
            build(**keywords)
    with pytest.raises(ValueError, match="no atrous form"):
        models.build("v3", "alexnet", 5)
    with pytest.raises(ValueError, match="heads"):
        build(heads={"geometry": 3}, input_scales=(0.5, 1.0))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_have_the_papers_recipe(name):
    config = preset(name)
    configuration.check(config)
    models.build(**config.model)
    optim.optimizer(shapes(build())["params"], lambda step: 0.0, config.optim)
    assert config.train.batch_size == 20
    assert config.optim.bias_gradient_multiplier == 2
    assert config.optim.schedule == "constant"
    rates = {"alexnet_32s": 1e-3, "googlenet_32s": 5e-5, "vgg16_32s": 1e-4, "vgg16_16s": 1e-6}
    assert config.optim.learning_rate == rates.get(name, 1e-8)


def test_a_classifier_without_batch_norm_or_rates_is_not_warned_of_them():
    assert advice.before_training(preset("vgg16_32s", **{"train.steps": 100})) == []


# --- losses ------------------------------------------------------------------------------------


def test_sampled_losses_are_those_of_cells_drawn_by_chance():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 20, 30, 4)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, (2, 160, 240)))
    loss = dict(preset("vgg16_32s").loss)

    @jax.jit
    def sampled(key, logits):
        return losses.training_loss(
            logits, labels, loss | {"sample_probability": 0.3}, 0, key=key, align_corners=False
        )

    whole = losses.training_loss(logits, labels, loss, 0, align_corners=False)
    drawn = [float(sampled(jax.random.key(i), logits)) for i in range(50)]
    assert np.std(drawn) > 0.001
    assert abs(np.mean(drawn) - whole) < 4 * np.std(drawn) / 50**0.5
    gradient = jax.grad(sampled, argnums=1)(jax.random.key(0), logits)
    used = np.abs(gradient).max(-1) > 1e-9  # a cell and, by the upsampling, its neighbours
    assert 0.3 < used.mean() < 0.99


def test_a_sample_of_all_is_all_and_a_wrong_share_is_refused():
    config = preset("vgg16_32s", **{"loss.sample_probability": 0.0})
    with pytest.raises(ConfigError, match="sample_probability"):
        configuration.check(config)


# --- heads and channels ------------------------------------------------------------------------


def test_heads_are_parts_of_one_classifier(thin):  # noqa: F811
    module = build(heads={"geometry": 3})
    images, variables = pictures(64, 96), randomised(shapes(module))
    outputs = module.apply(variables, images)
    assert {name: x.shape[-1] for name, x in outputs.items()} == {"logits": 5, "geometry": 3}
    params = variables["params"]
    of_head = jax.tree.map(lambda leaf: leaf[..., 5:], params["logits"])
    alone = build(num_classes=3).apply({"params": params | {"logits": of_head}}, images)
    np.testing.assert_allclose(outputs["geometry"], alone, atol=1e-6)
    # The same dictionary on DeepLab.
    module = models.build("v3plus", "mobilenet_v2", 5, heads={"depth": 2, "part": 7})
    outputs = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), images)[0])
    assert {name: x.shape[-1] for name, x in outputs.items()} == {
        "logits": 5,
        "depth": 2,
        "part": 7,
    }


def test_late_fusion_sums_the_scores_of_two_nets(thin):  # noqa: F811
    module = build(channel_groups=(3, 1))
    assert isinstance(module, LateFusion)
    images = np.concatenate([pictures(64, 64), pictures(64, 64, seed=1)[..., :1]], axis=-1)
    variables = randomised(
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(images)))
    )
    nets = variables["params"]
    assert sorted(nets) == ["nets_0", "nets_1"]
    apart = [
        build().apply({"params": nets[net]}, part)
        for net, part in (("nets_0", images[..., :3]), ("nets_1", images[..., 3:]))
    ]
    np.testing.assert_allclose(module.apply(variables, images), sum(apart), atol=1e-5)
    with pytest.raises(ValueError, match="channel_groups"):
        module.apply(variables, images[..., :3])


def test_weights_of_rgb_start_nets_of_more_channels(thin):  # noqa: F811
    """Early fusion: the fourth channel starts at zero. Late fusion: each net starts from them."""
    source = randomised(shapes(build()))
    flat = {
        f"params/{'/'.join(path)}": leaf for path, leaf in flatten_dict(source["params"]).items()
    }
    images = np.concatenate([pictures(64, 64), pictures(64, 64, seed=1)], axis=-1)

    def target(module, channels):
        return jax.eval_shape(
            lambda: module.init(jax.random.key(0), jnp.zeros((1, 65, 65, channels)))
        )

    told = []
    early = importers.load(flat, target(build(), 4), log=told.append)
    expected = build().apply(source, images[..., :3])
    np.testing.assert_allclose(build().apply(early, images[..., :4]), expected, atol=1e-6)
    assert any("input channels past RGB start at zero" in sentence for sentence in told)
    late = build(channel_groups=(3, 3))
    both = importers.load(flat, target(late, 6))
    apart = [build().apply(source, images[..., i : i + 3]) for i in (0, 3)]
    np.testing.assert_allclose(late.apply(both, images), sum(apart), atol=1e-5)


def test_two_heads_on_depth_train_and_are_evaluated(tmp_path):
    changes = {
        "model.backbone": "experiments.own_backbone:ConvNet",
        "model.heads": {"geometry": 3},
        "data.synthetic.depth": True,
        "data.synthetic.geometry": True,
        "train.steps": 2,
        "train.batch_size": 2,
        "train.eval_every": 0,
        "eval.panels": 1,
        "eval.batch_size": 2,
        "eval.crop_size": (97, 97),
        "data.crop_size": (65, 65),
    }
    config = configuration.load(f"{ROOT}/configs/fcn.py", changes)
    config.eval.split = "val"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deeplab_jax.data.synthetic.SPLITS", {"train": 4, "val": 2})
        results = main.run(config, "train", tmp_path / "run")
        assert 0 <= results["mean_iou_geometry"] <= 1
        assert 0 <= results["pixel_accuracy_geometry"] <= 1
        again = main.run(config, "eval", tmp_path / "run")
        assert again["mean_iou_geometry"] == results["mean_iou_geometry"]


def test_a_head_without_labels_is_told(data_folder, tmp_path):
    config = small(data_folder)
    config.model.heads = {"geometry": 3}
    with pytest.raises(DataError, match="no label_geometry"):
        main.run(config, "train", tmp_path)
    config.model.heads = None
    config.model.channel_groups = (3, 1)
    with pytest.raises(ConfigError, match="images of 3 channels"):
        main.run(config, "train", tmp_path)
    with pytest.raises(ConfigError, match="images of 3 channels"):
        main.run(config, "predict", tmp_path, input=str(data_folder / "images"))
    config.train.freeze_backbone = True
    with pytest.raises(ConfigError, match="freeze_backbone"):
        main.run(config, "train", tmp_path)
