"""The train step lowers for machines that are not here."""

import jax
import jax.numpy as jnp
import pytest
from conftest import CONFIGS

from deeplab_jax import config as configuration
from deeplab_jax import networks, optim, runtime
from deeplab_jax import train as training

PLATFORMS = ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
    ("spec", "overrides"),
    [
        ("v3plus.py", {}),
        ("v1.py:largefov_msc,voc", {}),
        pytest.param(
            "v3plus.py:xception_41,voc",
            {"model.dtype": "bfloat16", "train.accumulation_steps": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "v3.py:cascade,voc",
            {
                "model.backbone": "resnet_50_beta",
                "loss.top_k_percent_pixels": 0.5,
                "model.remat": True,
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_train_step_lowers_for_every_platform(spec, overrides):
    small = {"data.crop_size": (65, 65), "train.batch_size": 4, "model.num_classes": 5}
    config = configuration.load(f"{CONFIGS}/{spec}", small | overrides)
    module, _ = networks.build(config)
    train = config.train
    schedule = optim.schedule(config.optim, train.steps)

    def optimizer(params):
        return optim.optimizer(training.trained(params, train), schedule, config.optim)

    def begin():
        variables = training.init_variables(module, 0)
        return training.init_state(variables, optimizer(variables["params"]), train)

    state = jax.eval_shape(begin)
    mesh = runtime.data_mesh()
    step = training.make_step(module, optimizer(state.params), schedule, config.to_dict(), mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((4, 65, 65, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((4, 65, 65), jnp.int32),
    }
    exported = jax.export.export(step, platforms=PLATFORMS)(state, batch)
    assert exported.platforms == PLATFORMS
    assert exported.nr_devices == mesh.size
    leaves = len(jax.tree.leaves(state))
    old, new = (
        [(x.shape, x.dtype) for x in avals[:leaves]]
        for avals in (exported.in_avals, exported.out_avals)
    )
    assert old == new  # so the new state may take the old one's place
