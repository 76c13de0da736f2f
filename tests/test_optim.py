"""Schedules against the official code; which leaves decay, multiply and move."""

import json

import common
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from deeplab_jax import optim

OPTIM = common.base().optim.to_dict()
REFERENCE = json.loads((GOLDEN / "fn_lr.json").read_text())
PARAMS = {
    "backbone": {
        "conv": {"kernel": jnp.ones(2), "norm": {"bias": jnp.ones(2), "scale": jnp.ones(2)}},
        "depthwise": {"depthwise_kernel": jnp.ones(2)},
    },
    "aspp": {"kernel": jnp.ones(2), "norm": {"bias": jnp.ones(2)}},
    "logits1": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
}
# The official code's names for our keys; its training_number_of_steps is the number of steps.
KEYS = {
    "learning_policy": "schedule",
    "base_learning_rate": "learning_rate",
    "slow_start_burnin_type": "slow_start_burnin",
}


@pytest.mark.parametrize("case", REFERENCE)
def test_schedules_equal_the_reference(case):
    given = dict(REFERENCE[case]["kwargs"])
    steps = given.pop("training_number_of_steps")
    steps = int(given.pop("decay_steps", steps))
    options = OPTIM | {KEYS.get(key, key): value for key, value in given.items()}
    rate = jax.jit(optim.schedule(options, steps))
    ours = [float(rate(jnp.int32(step))) for step in REFERENCE[case]["steps"]]
    np.testing.assert_allclose(ours, REFERENCE[case]["lr"], rtol=1e-5, atol=5e-10)


def test_constant_schedule():
    rate = optim.schedule(OPTIM | {"schedule": "constant"}, 100)
    assert rate(0) == rate(1000) == 0.007


@pytest.mark.parametrize(
    ("key", "value"), [("schedule", "polly"), ("slow_start_burnin", "yes"), ("name", "adam")]
)
def test_unknown_choices_are_refused(key, value):
    options = OPTIM | {key: value}
    with pytest.raises(ValueError, match=f"{key} {value!r} is not one of"):
        optim.optimizer(PARAMS, optim.schedule(options, 10), options)


def moved(grads=None, params=PARAMS, steps=1, **options):
    """How far a step at rate 1 moves each leaf, downhill; of several steps the last."""
    options = OPTIM | {"weight_decay": 0.5, "last_layer_gradient_multiplier": 10.0} | options
    optimizer = optim.optimizer(params, lambda step: 1.0, options)
    state = optimizer.init(params)
    grads = grads or jax.tree.map(jnp.ones_like, params)
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
            updates, state = optimizer.update(grads, state, params)
    return jax.tree.map(lambda u: float(-u[0]), updates)


def test_decay_and_multipliers_touch_the_leaves_the_reference_does():
    step = moved()
    assert step["backbone"]["conv"] == {"kernel": 1.5, "norm": {"bias": 1.0, "scale": 1.0}}
    assert step["backbone"]["depthwise"]["depthwise_kernel"] == 1.0
    assert step["aspp"] == {"kernel": 15.0, "norm": {"bias": 10.0}}
    assert step["logits1"] == {"kernel": 15.0, "bias": 20.0}
    # Momentum gathers what the multipliers have grown.
    np.testing.assert_allclose(moved(steps=2)["logits1"]["bias"], 20 * 1.9)
    np.testing.assert_allclose(moved(nesterov=True)["logits1"]["bias"], 20 * 1.9)


def test_the_multiplier_can_be_the_classifiers_alone():
    step = moved(last_layers_contain_logits_only=True)
    assert step["aspp"] == {"kernel": 1.5, "norm": {"bias": 1.0}}
    assert step["logits1"] == {"kernel": 15.0, "bias": 20.0}


def test_adamw_decays_what_sgd_decays_and_multiplies_its_step():
    step = moved(name="adamw")
    # The first step of Adam is 1 whatever the gradient.
    close = {"rtol": 1e-5}
    np.testing.assert_allclose(step["backbone"]["conv"]["kernel"], 1.5, **close)
    np.testing.assert_allclose(step["backbone"]["conv"]["norm"]["bias"], 1.0, **close)
    np.testing.assert_allclose(step["backbone"]["depthwise"]["depthwise_kernel"], 1.0, **close)
    np.testing.assert_allclose(step["logits1"]["kernel"], 15.0, **close)
    np.testing.assert_allclose(step["logits1"]["bias"], 20.0, **close)


def test_clipping_scales_the_whole_gradient_to_the_norm_and_never_up():
    plain = {"weight_decay": 0.0, "last_layer_gradient_multiplier": 1.0}
    leaves = len(jax.tree.leaves(PARAMS))
    step = moved(clip_norm=1.0, **plain)
    np.testing.assert_allclose(step["aspp"]["kernel"], 1 / np.sqrt(2 * leaves), rtol=1e-6)
    assert moved(clip_norm=100.0, **plain) == moved(**plain)
    # On the loss's gradient: decay is not clipped.
    decayed = moved(clip_norm=1.0, weight_decay=0.5, last_layer_gradient_multiplier=1.0)
    np.testing.assert_allclose(decayed["aspp"]["kernel"] - step["aspp"]["kernel"], 0.5, rtol=1e-5)


def test_clipping_changes_no_checkpoint():
    states = [
        optim.optimizer(PARAMS, lambda step: 1.0, OPTIM | {"clip_norm": norm}).init(PARAMS)
        for norm in (None, 1.0)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
