"""Batch norm folded into the convolution before it, for inference."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deeplab_jax.models.layers import BatchNorm, ConvBN, DepthwiseConvBN


def fold_batch_norm(module: nn.Module, variables: Any) -> dict[str, Any]:
    """Folds every batch norm that follows a convolution into it.

    The kernel, and a bias, are multiplied by scale / sqrt(var + epsilon), of the norm a bias is
    left. With the result `module` answers the same up to rounding, and refuses to train its batch
    norm. A norm behind anything else stays as it is; folding twice is folding once.

    Args:
      module: from `models.build`.
      variables: its {"params", "batch_stats"}: arrays, of jax or numpy, and not traced ones.

    Returns:
      New variables, the norm of a ConvBN or DepthwiseConvBN only {"bias"}; without statistics
      "batch_stats" is left out. What changes becomes jax arrays of its former shape, dtype and
      sharding; it is computed in float64.
    """
    flat = flatten_dict(variables)
    for path, epsilon in _norms_behind_convolutions(module).items():
        norm, layer = ("params", *path), ("params", *path[:-1])
        if (*norm, "scale") not in flat:
            continue  # folded before
        # On the host: here this takes milliseconds, a program for each shape takes seconds.
        scale, mean, var = (
            np.asarray(flat.pop(name), np.float64)
            for name in (
                (*norm, "scale"),
                ("batch_stats", *path, "mean"),
                ("batch_stats", *path, "var"),
            )
        )
        factor = scale / np.sqrt(var + epsilon)
        # A kernel is [H, W, I, O] or, depthwise, [H, W, C]: the norm's channels come last.
        depthwise = (*layer, "depthwise_kernel")
        kernel, bias = depthwise if depthwise in flat else (*layer, "kernel"), (*norm, "bias")
        flat[kernel] = _like(flat[kernel], np.asarray(flat[kernel]) * factor)
        flat[bias] = _like(flat[bias], np.asarray(flat[bias]) - mean * factor)
        before = (*layer, "bias")
        if before in flat:
            flat[before] = _like(flat[before], np.asarray(flat[before]) * factor)
    return unflatten_dict(flat)


def _like(old: jax.Array | np.ndarray, new: np.ndarray) -> jax.Array:
    return jax.device_put(new.astype(old.dtype), getattr(old, "sharding", None))


def _norms_behind_convolutions(module: nn.Module) -> dict[tuple[str, ...], float]:
    """{path: epsilon}, asked of the modules as they run: variables know neither."""
    found = {}

    def look(call, args, kwargs, context):
        norm = context.module
        if isinstance(norm, BatchNorm) and isinstance(norm.parent, ConvBN | DepthwiseConvBN):
            found[norm.path] = norm.epsilon
        return call(*args, **kwargs)

    # Which norms there are depends neither on the images' size nor on their channels, which a
    # late fusion alone knows beforehand.
    channels = sum(getattr(module, "groups", (3,)))
    images = jax.ShapeDtypeStruct((1, 33, 33, channels), jnp.float32)
    with nn.intercept_methods(look):
        jax.eval_shape(lambda images: module.init(jax.random.key(0), images), images)
    return found
