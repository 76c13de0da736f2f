"""The field of view of a layer as it is, from gradients, not as kernel sizes and rates promise."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.errors import did_you_mean


def field_of_view(
    module: nn.Module,
    variables: Any,
    images: jax.Array,
    layer: str = "",
    source: str = "",
    seed: int = 0,
) -> np.ndarray:
    """How much each pixel moves the middle of a layer's output: [H, W] float32, in 0..1.

    The root mean square, over images and channels, of the gradient of the output's middle cell,
    divided by its highest value: the effective field of view of [V1] Sec. 3.1 and [V2] Fig. 4.
    Where it is 0 the layer sees nothing.

    Args:
      module: from `models.build`.
      variables: {"params", "batch_stats"}, folded ones or not.
      images: normalised, [B, H, W, C]; more of them give a smoother picture.
      layer: its path in `variables`, for instance "aspp/atrous1"; "" is the network, its logits.
      source: the layer whose input stands for the pixels, for instance "aspp" for the features
        that the ASPP reads; "" is the image.
      seed: of the signs that the channels are summed with.

    Raises:
      ValueError: for a layer that the network has not.
    """
    field = _field(module, variables, images, layer, source, jax.random.key(seed))
    return np.asarray(field / jnp.maximum(jnp.max(field), jnp.finfo(field.dtype).tiny))


@partial(jax.jit, static_argnames=("module", "layer", "source"))
def _field(module, variables, images, layer, source, key):
    run = partial(_run, module, variables, images, layer, source)
    read, _ = jax.eval_shape(run, 0.0)

    def middle(shift):
        _, output = run(shift)
        cell = output[:, output.shape[1] // 2, output.shape[2] // 2]
        # With random signs the mean square of the sum's gradient is the sum over the channels.
        return jnp.sum(cell * jax.random.rademacher(key, cell.shape, cell.dtype))

    gradient = jax.grad(middle)(jnp.zeros(read.shape, read.dtype))
    return jnp.sqrt(jnp.mean(jnp.sum(gradient**2, axis=-1), axis=0))


def _run(module, variables, images, layer, source, shift) -> tuple[jax.Array, jax.Array]:
    """(what `source` reads, what `layer` gives), with `shift` added to the former."""
    inputs, outputs, paths = {}, {}, set()

    def watch(call, args, kwargs, context):
        path = "/".join(context.module.path)
        paths.add(path)
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        # A layer may hand its call on to one of the same path: the outer one is meant.
        if path == source and not inputs:
            inputs[path] = args[0]
            args = (args[0] + shift, *args[1:])
        outputs[path] = call(*args, **kwargs)
        return outputs[path]

    with nn.intercept_methods(watch):
        module.apply(variables, images)
    for name, found in ((layer, outputs), (source, inputs)):
        if name not in found:
            raise ValueError(f"no layer {name!r}{did_you_mean(name, paths)}")
    output = outputs[layer]
    return inputs[source], output["logits"] if isinstance(output, dict) else output
