"""What the variants of the papers are: properties of the graphs, and each builds and trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from test_models import MOBILE, count, initialised, randomised, shapes

from deeplab_jax import models, ops

RESNET = {"name": "v3", "backbone": "resnet_50_beta", "num_classes": 4, "context": "none"}


def rates_seen(module, size=(65, 65)):
    """{(kernel shape, rate): count} of the dense convolutions wider than 1x1."""
    seen = []
    with ops.observing(seen.append):
        shapes(module, size)
    return [c.rate for c in seen if c.kernel[0] == 3 and c.kernel[-1] == 512]


def test_cascade_of_one_block_with_unit_grid_is_the_backbone_and_a_classifier():
    module = models.build(**RESNET, multi_grid=(1, 1, 1), blocks=4)
    images = jax.random.normal(jax.random.key(0), (1, 33, 33, 3))
    variables = randomised(initialised(module, images))
    assert set(variables["params"]) == {"backbone", "logits"}
    backbone = models.build(**RESNET).backbone(name=None)
    features = backbone.apply(
        {name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree},
        images,
        train=False,
    )["features"]
    logits = variables["params"]["logits"]
    expected = features @ logits["kernel"][0, 0] + logits["bias"]
    np.testing.assert_allclose(module.apply(variables, images), expected, rtol=1e-4, atol=1e-4)


def test_cascade_doubles_the_rate_from_block_to_block_and_multiplies_by_the_grid():
    """[V3] Fig. 3 (b): at output stride 16 blocks 4 to 7 have rates 2, 4, 8, 16."""
    module = models.build(**RESNET, blocks=7, multi_grid=(1, 2, 1))
    grid = (1, 2, 1)
    assert rates_seen(module) == [b * g for b in (2, 4, 8, 16) for g in grid]
    at_8 = models.build(**RESNET, blocks=5, output_stride=8, multi_grid=grid)
    assert rates_seen(at_8) == [b * g for b in (4, 8) for g in grid]


def test_cascade_copies_block_4():
    four, five, seven = (shapes(models.build(**RESNET, blocks=b))["params"] for b in (4, 5, 7))
    block4 = {k: v for k, v in four["backbone"].items() if k.startswith("block4")}
    # Block 4 reads 1024 channels, its copies 2048: conv1 grows, and the projected shortcut goes.
    copy = count(block4) - 1024 * 2048 - 2 * 2048 + 1024 * 512
    assert count(five) - count(four) == copy
    assert count(seven) - count(four) == 3 * copy


def test_without_atrous_convolution_the_cascade_keeps_every_stride():
    module = models.build(**RESNET, blocks=7, output_stride=256)
    assert set(rates_seen(module, (257, 257))) == {1}


@pytest.mark.parametrize(
    ("keywords", "stride"),
    [
        ({"decoder_convs": 1}, 4),
        ({"decoder_convs": 3}, 4),
        ({"decoder_convs": 1, "decoder_channels": 128}, 4),
        ({"decoder_convs": 1, "decoder_kernel_size": 1}, 4),
        ({"low_level_channels": 8}, 4),
        ({"decoder_output_stride": 8}, 8),
        ({"decoder_output_stride": (8, 4)}, 4),
    ],
    ids=str,
)
def test_decoders_of_v3plus_tables_1_and_2(keywords, stride):
    module = models.build("v3plus", "resnet_50_beta", 4, separable=False, **keywords)
    logits, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, 65, 97, 3)))
    )
    assert logits.shape[1:3] == (-(-65 // stride), -(-97 // stride))
    stages = {k: v for k, v in variables["params"].items() if k.startswith("decoder")}
    wanted = (
        {"decoder_8", "decoder_4"}
        if keywords.get("decoder_output_stride") == (8, 4)
        else {"decoder"}
    )
    assert set(stages) == wanted
    for stage in stages.values():
        convs = [v["kernel"].shape for k, v in stage.items() if k.startswith("conv")]
        size = keywords.get("decoder_kernel_size", 3)
        assert len(convs) == keywords.get("decoder_convs", 2)
        assert convs[-1][:2] == (size, size)
        assert convs[-1][-1] == keywords.get("decoder_channels", 256)
        assert stage["low_level"]["kernel"].shape[-1] == keywords.get("low_level_channels", 48)


@pytest.mark.parametrize(
    ("depthwise", "norms"), [("norm", True), ("norm_relu", True), ("bare", False)]
)
def test_xceptions_depthwise_ablation(depthwise, norms):
    module = models.build("v3", "xception_41", 4, xception_depthwise=depthwise)
    layer = shapes(module)["params"]["backbone"]["middle_unit1"]["separable_conv1_depthwise"]
    assert ("norm" in layer) == norms


def test_a_relu_after_depthwise_changes_xceptions_features():
    image = jax.random.normal(jax.random.key(0), (1, 33, 33, 3))
    build = lambda kind: models.build("v3", "xception_41", 4, xception_depthwise=kind)  # noqa: E731
    variables = randomised(initialised(build("norm"), image))
    outputs = [jax.jit(build(kind).apply)(variables, image) for kind in ("norm", "norm_relu")]
    assert not np.allclose(*outputs)


def test_the_auxiliary_classifier_is_there_in_training_alone():
    module = models.build(**MOBILE, auxiliary=True)
    images = jnp.zeros((2, 65, 65, 3))
    variables = shapes(module)
    rngs = {"dropout": jax.random.key(0)}

    def run(train):
        return jax.eval_shape(
            lambda v: module.apply(v, images, train=train, rngs=rngs, mutable=["batch_stats"])[0],
            variables,
        )

    trained = run(True)
    assert set(trained) == {"logits", "auxiliary"}
    assert trained["auxiliary"].shape == (2, 5, 5, 21)
    assert run(False).shape == trained["logits"].shape
    without = shapes(models.build(**MOBILE))["params"]
    assert set(variables["params"]) - set(without) == {"auxiliary"}


@pytest.mark.parametrize("by_name", [True, False])
def test_any_encoder_with_named_endpoints_can_be_the_backbone(by_name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from experiments.own_backbone import ConvNet

    backbone = "experiments.own_backbone:ConvNet" if by_name else ConvNet
    module = models.build("v3plus", backbone, 4, output_stride=8, atrous_rates=(1, 2))
    logits, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, 65, 97, 3)))
    )
    assert logits.shape == (1, 17, 25, 4)
    assert set(variables["params"]["backbone"]) == {f"conv{i}" for i in range(5)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blocks": 8}, "blocks 8 is not one of 4, 5, 6, 7"),
        ({"blocks": 5, "backbone": "xception_65"}, "blocks applies to ResNet"),
        ({"decoder_output_stride": (4, 8)}, "from coarse to fine"),
        ({"decoder_kernel_size": 5}, "decoder_kernel_size 5"),
        ({"xception_depthwise": "bare"}, "xception_depthwise applies to Xception"),
        ({"backbone": "no_such_module:Net"}, "backbone 'no_such_module:Net': No module named"),
        ({"output_stride": 64}, "output_stride 64 cannot be reached"),
    ],
    ids=str,
)
def test_impossible_variants_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        shapes(
            models.build(**{"name": "v3plus", "backbone": "resnet_50", "num_classes": 4} | wrong)
        )
