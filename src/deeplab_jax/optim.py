"""Learning-rate schedules and optimizers of the papers, as the official code runs them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

NAMES = ("sgd", "adamw")
SCHEDULES = ("poly", "step", "cosine", "constant")
BURNINS = ("none", "linear")


def schedule(optim: Mapping[str, Any], steps: int) -> optax.Schedule:
    """step → learning rate, a pure function: `optim["schedule"]` after the slow start.

    "poly" is learning_rate * (1 - step / steps) ** learning_power ([V2] Sec. 4.1.1) down to
    end_learning_rate, "cosine" half a wave down to 0, "step" multiplies by
    learning_rate_decay_factor every learning_rate_decay_step steps (as [V1] trains). The first
    slow_start_step steps are not theirs: the rate is slow_start_learning_rate, or climbs from it
    in a line ("linear" slow_start_burnin); the schedule proper has the rest of `steps`.

    Args:
      optim: `config.optim`.
      steps: the step at which poly and cosine arrive.

    Raises:
      ValueError: for an unknown schedule or burn-in.
    """
    _check("schedule", optim["schedule"], SCHEDULES)
    _check("slow_start_burnin", optim["slow_start_burnin"], BURNINS)
    rate, slow = optim["learning_rate"], optim["slow_start_step"]

    def rate_at(step):
        step = jnp.asarray(step)
        done = jnp.maximum(step - slow, 0)
        # Not 1 - done / steps, which rounding may put below 0 at the end, where a power is NaN.
        left = jnp.maximum(steps - slow - done, 0).astype(jnp.float32) / (steps - slow)
        if optim["schedule"] == "poly":
            end = optim["end_learning_rate"]
            proper = end + (rate - end) * left ** optim["learning_power"]
        elif optim["schedule"] == "cosine":
            proper = rate * (1 - jnp.cos(jnp.pi * left)) / 2
        elif optim["schedule"] == "step":
            times = (done // optim["learning_rate_decay_step"]).astype(jnp.float32)
            proper = rate * optim["learning_rate_decay_factor"] ** times
        else:
            proper = jnp.full_like(left, rate)
        if not slow:
            return proper
        start = optim["slow_start_learning_rate"]
        if optim["slow_start_burnin"] == "linear":
            start = start + (rate - start) * (step.astype(jnp.float32) / slow)
        return jnp.where(step < slow, start, proper)

    return rate_at


def optimizer(
    params: Any, schedule: optax.Schedule, optim: Mapping[str, Any]
) -> optax.GradientTransformation:
    """SGD with momentum, or AdamW, with decay on dense kernels and per-leaf multipliers.

    Decayed are the ordinary convolutions' kernels: no depthwise ones, no batch norm, no biases.
    Of SGD the decay's gradient joins the loss's before the multipliers and the momentum, the
    reference's order. AdamW (arXiv 1711.05101) is blind to the size of a gradient: there decay and
    multipliers act on its update. Clipping comes first, on the loss's gradient.

    Args:
      params: the parameters (or their shapes), for the structure.
      schedule: step → learning rate.
      optim: `config.optim`: name, momentum (AdamW's first beta), nesterov, weight_decay,
        clip_norm (highest global norm, or None), last_layer_gradient_multiplier (of every leaf
        outside the backbone; with last_layers_contain_logits_only of the classifiers alone, as
        [V1] and [V2] have it), bias_gradient_multiplier (of the convolutions' biases).

    Raises:
      ValueError: for an unknown name.
    """
    _check("name", optim["name"], NAMES)
    decay = optax.add_decayed_weights(
        optim["weight_decay"], mask=_by_path(params, lambda path: path[-1] == "kernel")
    )

    def multiplier(path):
        path = path[1:] if path[0].startswith("nets_") else path  # of a late fusion
        last = path[0] != "backbone"
        if optim["last_layers_contain_logits_only"]:
            last = path[0].startswith(("logits", "classifier"))
        # Convolution biases alone: batch norm's are betas, which the reference leaves at 1.
        bias = path[-1] == "bias" and path[-2] != "norm"
        return (optim["last_layer_gradient_multiplier"] if last else 1.0) * (
            optim["bias_gradient_multiplier"] if bias else 1.0
        )

    multipliers = _by_path(params, multiplier)
    multiply = optax.stateless(
        lambda grads, _: jax.tree.map(lambda g, m: g * m, grads, multipliers)
    )
    momentum, nesterov = optim["momentum"], optim["nesterov"]
    if optim["name"] == "sgd":
        chain = optax.chain(
            decay, multiply, optax.sgd(schedule, momentum=momentum, nesterov=nesterov)
        )
    else:
        adam = optax.scale_by_adam(b1=momentum, nesterov=nesterov)
        chain = optax.chain(adam, decay, multiply, optax.scale_by_learning_rate(schedule))
    if optim["clip_norm"] is None:
        return chain
    clip = optax.clip_by_global_norm(optim["clip_norm"])

    # Around the chain, not in it: checkpoints fit whatever clip_norm, which a run that went
    # wrong may need to change.
    def update(grads, state, params):
        grads, _ = clip.update(grads, clip.init(params))
        return chain.update(grads, state, params)

    return optax.GradientTransformation(chain.init, update)


def _by_path(params, function):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: function([key.key for key in path]), params
    )


def _check(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} {value!r} is not one of {', '.join(allowed)}")
