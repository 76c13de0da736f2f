"""Learning-rate schedule and optimizer of the papers, as the official code runs them."""

from collections.abc import Mapping
from typing import Any

import jax
import optax


def poly_schedule(learning_rate: float, steps: int, power: float = 0.9) -> optax.Schedule:
    """learning_rate * (1 - step / steps) ** power ([V2] Sec. 4.1.1), a pure function of step."""
    return optax.polynomial_schedule(
        init_value=learning_rate, end_value=0.0, power=power, transition_steps=steps
    )


def sgd(
    params: Any, schedule: optax.Schedule, optim: Mapping[str, Any]
) -> optax.GradientTransformation:
    """SGD with momentum, decay on dense kernels and per-leaf multipliers, in the reference's order.

    The decay's gradient joins the loss's before the multipliers and the momentum. Decayed are
    the ordinary convolutions' kernels: no depthwise ones, no batch norm, no biases.

    Args:
      params: the parameters (or their shapes), for the structure.
      schedule: step → learning rate.
      optim: `config.optim`: momentum, weight_decay, last_layer_gradient_multiplier (of every
        leaf outside the backbone), bias_gradient_multiplier (of the logits' bias).
    """
    decayed = _by_path(params, lambda path: path[-1] == "kernel")

    def multiplier(path):
        head = 1.0 if path[0] == "backbone" else optim["last_layer_gradient_multiplier"]
        # Convolution biases alone: batch norm's are betas, which the reference leaves at 1.
        bias = path[-1] == "bias" and path[-2] != "norm"
        return head * (optim["bias_gradient_multiplier"] if bias else 1.0)

    multipliers = _by_path(params, multiplier)
    return optax.chain(
        optax.add_decayed_weights(optim["weight_decay"], mask=decayed),
        optax.stateless(lambda grads, _: jax.tree.map(lambda g, m: g * m, grads, multipliers)),
        optax.sgd(schedule, momentum=optim["momentum"]),
    )


def _by_path(params, function):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: function([key.key for key in path]), params
    )
