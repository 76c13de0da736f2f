"""Every row of the papers' tables is a config that builds, and every distinct graph trains."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN, ROOT
from test_models import count, randomised, shapes

from deeplab_jax import config as configuration
from deeplab_jax import losses, models

sys.path.append(str(ROOT / "experiments"))
import papers

GOLDEN_PARAMETERS = GOLDEN / "papers_parameters.json"
SHALLOW = {
    "resnet_101_beta": "resnet_50_beta",
    "resnet_101_caffe": "resnet_50_caffe",
    "xception_65": "xception_41",
    "xception_71": "xception_41",
}


@functools.cache
def configs():
    """Of every row."""
    out = []
    for row in papers.ROWS:
        spec = f"{ROOT}/configs/{row.config},{row.dataset}"
        config = configuration.load(spec, dict(row.overrides))
        configuration.check(config)
        out.append(config)
    return out


def distinct(*keywords_of):
    """{name of the first row: keywords} of every distinct graph."""
    found = {}
    for keywords in keywords_of:
        for row, config in zip(papers.ROWS, configs()):
            key = json.dumps(keywords(config), sort_keys=True)
            found.setdefault(key, f"{row.table} {row.label}")
    return {name: json.loads(key) for key, name in found.items()}


def structure(config):
    """The graph as far as it is code: not its depth, nor what only sizes or spaces a layer."""
    model = dict(config.model) | {
        "num_classes": 3,
        "low_level_channels": 48,
        "decoder_channels": 64,
    }
    model["backbone"] = SHALLOW.get(model["backbone"], model["backbone"])
    stride = {"classifier": 32, "fcn": 32, "v3": 16, "v3plus": 16}.get(model["name"], 8)
    model |= {"fc_channels": 64, "output_stride": stride}
    model["blocks"] = min(model["blocks"], 5)
    model["decoder_convs"] = min(model["decoder_convs"], 2)
    if model["input_scales"]:  # around any network
        model |= {"input_scales": (0.5, 1.0), "atrous_rates": None}
    if model["multi_grid"]:
        model["multi_grid"] = (1, 2, 4)
    if isinstance(model["atrous_rates"], tuple):
        model["atrous_rates"] = tuple(range(1, len(model["atrous_rates"]) + 1))
    return model


GRAPHS = distinct(lambda config: dict(config.model), configuration.eval_model)
STRUCTURES = distinct(structure)


def test_the_readme_lists_every_row():
    assert papers.table() in papers.README.read_text()
    assert len(papers.ROWS) > 130


@pytest.mark.parametrize("name", GRAPHS)
def test_every_distinct_graph_of_the_papers_builds(name):
    model = GRAPHS[name]
    module = models.build(**model)
    size = (65, 97)
    output, variables = jax.eval_shape(
        lambda: module.init_with_output(
            jax.random.key(0), jnp.zeros((1, *size, sum(model["channel_groups"] or (3,))))
        )
    )
    stride = model["output_stride"]
    if model["name"] in ("fcn", "v3plus") and model["decoder_output_stride"]:
        stride = np.min(model["decoder_output_stride"])
    logits = output["logits"] if isinstance(output, dict) else output
    size = (1, 1) if model["name"] == "classifier" else [-(-n // stride) for n in size]
    assert logits.shape == (1, *size, model["num_classes"])
    parameters = json.loads(GOLDEN_PARAMETERS.read_text())
    assert count(variables["params"]) == parameters[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_of_the_papers_learns_from_two_images(name, fewest_layers):
    module = models.build(**STRUCTURES[name])
    rng = np.random.default_rng(0)
    channels = sum(STRUCTURES[name]["channel_groups"] or (3,))
    images = jnp.asarray(rng.standard_normal((2, 33, 33, channels)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (2, 33, 33)))
    variables = randomised(shapes(module, (33, 33), channels))

    def loss(params):
        outputs, _ = module.apply(
            variables | {"params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        outputs = outputs.values() if isinstance(outputs, dict) else [outputs]
        of = labels[:, :1, :1] if STRUCTURES[name]["name"] == "classifier" else labels
        return sum(losses.softmax_cross_entropy(logits, of)[0] for logits in outputs)

    @jax.jit
    def step(params):
        value, grads = jax.value_and_grad(loss)(params)
        rate = 1e-3 * value / optax.tree.norm(grads, squared=True)  # to first order 0.1 % less
        return value, jax.tree.map(lambda p, g: p - rate * g, params, grads)

    before, params = step(variables["params"])
    after, _ = step(params)
    assert np.isfinite(before)
    assert after < before
