import importlib.util
import subprocess
import sys
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

import deeplab_jax
from deeplab_jax import counting, models, ops

VALID = ((0, 0), (0, 0))
XCEPTION = {"backbone": "xception_65", "num_classes": 21}
MOBILE = {"name": "v3", "backbone": "mobilenet_v2", "num_classes": 21, "atrous_rates": None}
# (keywords, exact multiply-adds, published or None, tolerance in %): at 513x513, [V3+] Table 5
# and the official model zoo.
CASES = {
    "v3plus_os16": (XCEPTION | {"name": "v3plus"}, 54_035_303_024, 54.17, 0.5),
    "v3_dense_os8": (
        XCEPTION | {"name": "v3", "output_stride": 8, "separable": False},
        227_039_944_896,
        240.85,
        0.5,
    ),
    "mobilenet_os16": (MOBILE, 2_740_709_056, 2.75, 0.5),
    "mobilenet_half_os16": (MOBILE | {"width_multiplier": 0.5}, 867_496_704, 0.88, 1.5),
}


def _published_rows():
    spec = importlib.util.spec_from_file_location(
        "multiply_adds", ROOT / "experiments" / "multiply_adds.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PUBLISHED = _published_rows()


@pytest.mark.parametrize("case", CASES)
def test_counts_are_the_papers(case):
    keywords, exact, published, within = CASES[case]
    module = models.build(**keywords)
    assert deeplab_jax.count(module, (513, 513))["multiply_adds"] == exact
    papers = deeplab_jax.count(module, (513, 513), "tf_space_to_batch")
    assert papers["multiply_adds"] == pytest.approx(published * 1e9, rel=within / 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [row for row in PUBLISHED.ROWS if row.within is not None],
    ids=lambda row: f"{row.source}: {row.label}",
)
def test_every_published_count(row):
    papers, _ = PUBLISHED.cost(row, "tf_space_to_batch")
    assert papers == pytest.approx(row.published, rel=row.within / 100)


def test_layers_add_up_and_parameters_are_all_there():
    module = models.build("v3plus", "mobilenet_v2", 7, width_multiplier=0.5, atrous_rates=(2, 4))
    result = deeplab_jax.count(module, (65, 97), channels=4)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 65, 97, 4))))
    layers = result["layers"]
    for key, collection in (("parameters", "params"), ("statistics", "batch_stats")):
        assert result[key] == sum(x.size for x in jax.tree.leaves(variables[collection]))
    for key in ("parameters", "multiply_adds"):
        assert result[key] == sum(layer[key] for layer in layers)
    names = [layer["name"] for layer in layers]
    assert len(set(names)) == len(names)
    assert layers[0] == {
        "name": "backbone/stem",
        "input": (65, 97, 4),
        "output": (33, 49, 16),
        "kernel": (3, 3),
        "stride": 2,
        "rate": 1,
        "groups": 1,
        "parameters": 3 * 3 * 4 * 16 + 2 * 16,
        "multiply_adds": 33 * 49 * 3 * 3 * 4 * 16,
    }
    atrous = layers[names.index("aspp/atrous2/depthwise")]
    assert (atrous["rate"], atrous["groups"]) == (4, 160)
    assert atrous["multiply_adds"] == 5 * 7 * 3 * 3 * 160
    assert names[-1] == "logits"
    assert layers[-1]["parameters"] == 256 * 7 + 7


def _products(jaxpr):
    """Multiply-adds of all convolutions and products in a jaxpr, those inside its equations too."""
    total = 0
    for eqn in jaxpr.eqns:
        y = prod(eqn.outvars[0].aval.shape)
        if eqn.primitive.name == "conv_general_dilated":
            total += y * prod(eqn.invars[1].aval.shape[:-1])  # HWIO, I within a group
        elif eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total += y * prod(eqn.invars[0].aval.shape[i] for i in contracted)
        if eqn.primitive.name == "cond":  # a choice by platform: XLA's own form comes last
            total += _products(eqn.params["branches"][-1].jaxpr)
            continue
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)  # a ClosedJaxpr holds one
                total += _products(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("separable", [True, False])
def test_counts_are_what_the_trace_holds(separable):
    # v3: the decoder's resizing would be matrix products too.
    module = models.build(
        "v3", "mobilenet_v2", 5, width_multiplier=0.5, output_stride=8, separable=separable
    )
    images = jnp.zeros((1, 33, 50, 3))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
    trace = jax.make_jaxpr(module.apply)(variables, images)
    assert _products(trace.jaxpr) == deeplab_jax.count(module, (33, 50))["multiply_adds"]


class Conv(nn.Module):
    features: int
    rate: int = 1

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.zeros, (3, 3, x.shape[-1], self.features))
        padding = ops.same_padding(x.shape[1:3], (3, 3), 1, self.rate)
        return ops.conv2d(x, kernel, 1, self.rate, padding)


def test_dense_atrous_outputs_are_rounded_up_to_the_rate_depthwise_ones_are_not():
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = Conv(2, rate=6, name="dense")(x)
            kernel = self.param("depthwise_kernel", nn.initializers.zeros, (3, 3, 2))
            return ops.depthwise_conv2d(x, kernel, 1, 6, ((6, 6), (6, 6)))

    exact, papers = (
        [layer["multiply_adds"] for layer in deeplab_jax.count(Both(), (33, 12), c)["layers"]]
        for c in counting.CONVENTIONS
    )
    assert exact == [33 * 12 * 9 * 3 * 2, 33 * 12 * 9 * 2]
    assert papers == [36 * 12 * 9 * 3 * 2, 33 * 12 * 9 * 2]


def test_a_jitted_or_rematerialised_or_shared_layer_is_counted_each_time_it_runs():
    convolve = jax.jit(lambda x, kernel: ops.conv2d(x, kernel, 1, 1, VALID))

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for name in "ab":
                kernel = self.param(name, nn.initializers.zeros, (1, 1, 3, 3))
                x = convolve(x, kernel)
            shared = nn.remat(Conv)(3, name="shared")
            return nn.jit(Conv)(3, name="jitted")(shared(shared(x)))

    for _ in range(2):  # caches are warm the second time
        result = deeplab_jax.count(Twice(), (4, 5))
        assert [(x["name"], x["parameters"]) for x in result["layers"]] == [
            ("", 18),
            ("", 0),
            ("shared", 81),
            ("shared", 0),
            ("jitted", 81),
        ]
        assert result["parameters"] == 180
        assert result["multiply_adds"] == 20 * (9 + 9 + 3 * 81)


def test_nothing_is_reported_outside():
    seen = []
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2))
    with ops.observing(seen.append):
        ops.depthwise_conv2d(x, kernel, 2, 1, VALID)
    ops.depthwise_conv2d(x, kernel, 2, 1, VALID)
    assert seen == [ops.Convolution((1, 4, 4, 2), (3, 3, 2), (1, 1, 1, 2), 2, 1, 2)]


def test_table_reads():
    module = models.build("v3", "mobilenet_v2", 5, width_multiplier=0.5)
    result = deeplab_jax.count(module, (65, 65))
    lines = counting.table(result).splitlines()
    assert len(lines) == len(result["layers"]) + 3
    assert lines[1].split() == [
        *("backbone/stem", "65x65x3", "33x33x16", "3x3", "2", "1", "1", "464", "470,448"),
        f"{470_448 / result['multiply_adds']:.1%}",
    ]
    assert lines[-2].split()[1:] == [
        f"{result['parameters']:,}",
        f"{result['multiply_adds']:,}",
        "100.0%",
    ]
    parts = counting.table(result, by="part").splitlines()
    assert [line.split()[0] for line in parts[1:-1]] == ["backbone", "aspp", "logits", "total"]
    assert "backbone/block3" in counting.table(result, by="block")


def test_wrong_words_are_refused():
    module = models.build(**MOBILE)
    with pytest.raises(ValueError, match="tf_space_to_batch"):
        deeplab_jax.count(module, (65, 65), "space")
    with pytest.raises(ValueError, match="'part'"):
        counting.table({}, by="stage")
    with pytest.raises(AttributeError, match="no attribute 'counts'"):
        deeplab_jax.counts  # noqa: B018


def test_importing_the_package_is_light():
    code = "import sys, deeplab_jax; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
