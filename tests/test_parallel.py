"""Many devices do as one: with the batch, or the rows of each image, divided among them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import CHILD_ENVIRONMENT
from PIL import Image
from test_train import small

from deeplab_jax import main
from deeplab_jax.errors import ConfigError

# Of a program with eight devices: the losses and the parameters of 20 steps on some of them.
STEPS = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import jax, numpy as np
from deeplab_jax import runtime
from test_train import batch, small, step_and_state

kind, backbone = json.loads(sys.argv[2])
changes = {"model__dtype": kind, "train__batch_size": 8, "optim__learning_rate": 0.007}
config = small("", model__backbone=backbone, data__crop_size=(49, 49), **changes)
examples = [batch(8, seed) for seed in range(20)]
runs = {}
for devices, height in ((1, 1), (2, 1), (8, 1), (8, 4)):
    mesh = runtime.data_mesh(height, jax.devices()[:devices])
    step, state, mesh = step_and_state(config, mesh)
    losses = []
    for example in examples:
        state, figures = step(state, runtime.shard_batch(example, mesh))
        losses.append(float(figures["loss"]))
    runs[devices, height] = losses, jax.device_get((state.params, state.batch_stats))
    assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {kind}
alone = runs.pop((1, 1))
found = {}
for split, (losses, variables) in runs.items():
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), alone[1], variables)
    gaps = np.abs(np.array(losses) / alone[0] - 1)
    found[str(split)] = gaps.tolist(), max(jax.tree.leaves(apart))
print(json.dumps(found))
"""


def with_eight_devices(program, *arguments, **environment):
    flags = CHILD_ENVIRONMENT["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(sys.path), *map(json.dumps, arguments)],
        env=CHILD_ENVIRONMENT | {"XLA_FLAGS": flags} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "backbone",
    ["tiny_backbone:Tiny", pytest.param("mobilenet_v2", marks=pytest.mark.slow)],
)
def test_one_two_and_eight_devices_and_groups_of_four_take_the_same_20_steps(backbone):
    found = with_eight_devices(STEPS, ("float64", backbone), JAX_ENABLE_X64="1")
    assert len(found) == 3
    for losses, parameters in found.values():
        assert len(losses) == 20
        assert max(losses) < 1e-5
        assert parameters < 1e-4


def test_in_float32_their_first_losses_agree():
    found = with_eight_devices(STEPS, ("float32", "tiny_backbone:Tiny"))
    assert all(losses[0] < 1e-5 for losses, _ in found.values())


# --- images split over their height ---------------------------------------------------------

LOGITS = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import jax, numpy as np
from deeplab_jax import models, runtime

name, backbone, height, options = json.loads(sys.argv[2])
module = models.build(name, backbone, num_classes=5, **options)
images = jax.random.normal(jax.random.key(0), (2, height, 49, 3))
variables = jax.jit(module.init)(jax.random.key(1), images)
alone = jax.jit(module.apply)(variables, images)
mesh = runtime.data_mesh(8)
split = jax.jit(runtime.spatially(module, mesh).apply)
everywhere = jax.device_put((variables, images), runtime.replicated(mesh))
spread = float(alone.std())
print(json.dumps(float(np.abs(split(*everywhere) - alone).max()) / spread))
"""


@pytest.mark.parametrize(
    "network",
    [
        # 9 rows of features on 8 devices, taps up to 18 rows away
        ("v3plus", "mobilenet_v2", 129, {"output_stride": 16, "atrous_rates": [6, 12, 18]}),
        pytest.param(
            ("v3", "resnet_50_beta", 97, {"output_stride": 8, "atrous_rates": [12, 24, 36]}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda network: network[1],
)
def test_a_band_of_rows_a_device_gives_the_logits_of_whole_images(network):
    assert with_eight_devices(LOGITS, network) < 1e-4


def test_training_evaluation_and_prediction_with_two_devices_an_image(data_folder, tmp_path):
    found = {}
    for shards in (1, 2):
        workdir = tmp_path / str(shards)
        config = small(data_folder, spatial_shards=shards, train__steps=2, log_every=1)
        main.run(config, "train", workdir)
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        losses = [line["loss"] for line in lines if "loss" in line]
        main.run(config, "predict", workdir, str(data_folder / "images"))
        masks = sorted((workdir / "predictions" / "labels").iterdir())
        results = json.loads((workdir / "eval" / "results.json").read_text())
        found[shards] = losses, np.stack([Image.open(mask) for mask in masks]), results
    (losses, masks, results), (split_losses, split_masks, split_results) = found.values()
    np.testing.assert_allclose(split_losses, losses, rtol=1e-4)
    assert (split_masks != masks).mean() < 0.01  # near ties
    assert split_results["pixel_accuracy"] == pytest.approx(results["pixel_accuracy"], abs=0.01)
    with pytest.raises(ConfigError, match="2 devices of process 0 do not fall into groups of"):
        main.run(small(data_folder, spatial_shards=3), "train", tmp_path / "3")
