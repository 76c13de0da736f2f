"""Batch normalisation by the statistics of the batch."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import at_least_float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x [B, H, W, C] by its own statistics over B, H, W; returns (y, mean, var).

    The statistics are float32 or wider, the variance is the biased one. The gradient is written
    by hand: two sums and one pass over x, where the derived one keeps a second copy of x.
    The returned mean and var are for the running statistics: no gradient flows through them.
    """
    return _batch_norm_fwd(x, scale, bias, epsilon)[0]


def _batch_norm_fwd(x, scale, bias, epsilon):
    wide = x.astype(at_least_float32(x.dtype))
    mean = jnp.mean(wide, axis=(0, 1, 2))
    # About the mean, not E[x²] - E[x]²: that difference cancels where the mean is large.
    var = jnp.mean(jnp.square(wide - mean), axis=(0, 1, 2))
    factor = scale * lax.rsqrt(var + epsilon)
    y = (wide * factor + (bias - mean * factor)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_bwd(epsilon, residuals, cotangents):
    x, scale, mean, var = residuals
    wide = x.astype(mean.dtype)
    dy = cotangents[0].astype(mean.dtype)
    inverse = lax.rsqrt(var + epsilon)
    count = x.size // x.shape[-1]
    dbias = jnp.sum(dy, axis=(0, 1, 2))
    dscale = jnp.sum(dy * (wide - mean), axis=(0, 1, 2)) * inverse
    # dx = scale / std * (dy - mean(dy) - x_hat * mean(dy * x_hat)), as a * dy + b * x + c.
    a = scale * inverse
    b = -a * inverse * dscale / count
    c = -a * dbias / count - b * mean
    dx = (a * dy + b * wide + c).astype(x.dtype)
    return dx, dscale.astype(scale.dtype), dbias.astype(scale.dtype)


batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)
