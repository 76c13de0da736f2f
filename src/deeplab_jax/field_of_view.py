"""Fields of view as they are, from gradients, not as kernel sizes and rates promise them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.errors import did_you_mean

_TINY = np.finfo(np.float32).tiny


def fields_of_view(
    module: nn.Module,
    variables: Any,
    images: jax.Array,
    layers: Sequence[str] = ("",),
    source: str = "",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """How much each pixel moves the middle of a layer's output: {layer: [H, W] float32 in 0..1}.

    The root mean square, over images and channels, of the gradient of the output's middle cell,
    divided by its highest value: the effective field of view of [V1] Sec. 3.1 and [V2] Fig. 4.
    Where it is 0 the layer sees nothing.

    Args:
      module: from `models.build`.
      variables: {"params", "batch_stats"}, folded ones or not.
      images: normalised, [B, H, W, C]; more of them give a smoother picture.
      layers: paths in `variables`, for instance "aspp/atrous1"; "" is the network, its logits.
      source: the layer whose input stands for the pixels, for instance "aspp" for the features
        that the ASPP reads; "" is the image.
      seed: of the signs that the channels are summed with.

    Raises:
      ValueError: for a layer that the network has not, or that gives several outputs.
    """
    # A backward pass a layer, one program for all: compiling takes longer than running.
    pullback = _forward(module, variables, images, tuple(layers), source, jax.random.key(seed))
    fields = {
        layer: np.asarray(_backward(pullback, one))
        for layer, one in zip(layers, np.eye(len(layers), dtype=np.float32))
    }
    return {layer: field / max(field.max(), _TINY) for layer, field in fields.items()}


@partial(jax.jit, static_argnames=("module", "layers", "source"))
def _forward(module, variables, images, layers, source, key):
    """What turns a cotangent [layers] into the gradient of the middles at what `source` reads."""
    run = partial(_run, module, variables, images, layers, source)
    read, _ = jax.eval_shape(run, 0.0)

    def middles(shift):
        _, outputs = run(shift)
        cells = [x[:, x.shape[1] // 2, x.shape[2] // 2] for x in outputs]
        # With random signs the mean square of the sum's gradient is the sum over the channels.
        signs = [jax.random.rademacher(key, cell.shape, cell.dtype) for cell in cells]
        return jnp.stack([jnp.sum(cell * sign) for cell, sign in zip(cells, signs)])

    return jax.vjp(middles, jnp.zeros(read.shape, read.dtype))[1]


@jax.jit
def _backward(pullback, cotangent):
    (gradient,) = pullback(cotangent)  # [B, H, W, C]
    return jnp.sqrt(jnp.mean(jnp.sum(gradient**2, axis=-1), axis=0))


def _run(module, variables, images, layers, source, shift) -> tuple[jax.Array, list[jax.Array]]:
    """(what `source` reads, what `layers` give), with `shift` added to the former."""
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
    for name, found in (*((layer, outputs) for layer in layers), (source, inputs)):
        if name not in found:
            raise ValueError(f"no layer {name!r}{did_you_mean(name, paths)}")
    given = []
    for layer in layers:
        found = outputs[layer]
        if isinstance(found, dict):
            if "logits" not in found:
                raise ValueError(f"layer {layer!r} gives several outputs: {', '.join(found)}")
            found = found["logits"]
        given.append(found)
    return inputs[source], given
