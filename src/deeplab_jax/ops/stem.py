"""The first layer of a backbone on CPU: 3x3 filters of stride 2 on the few channels of an image."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import Padding, output_size
from deeplab_jax.ops.windows import pad


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def pixel_pairs(x: jax.Array, kernel: jax.Array, padding: Padding, native) -> jax.Array:
    """x [B, H, W, I], kernel [3, 3, I, O] → [B, H', W', O].

    Neighbouring pixels of a row are read as one of 2 * I channels, which makes every column the
    filter sees a contiguous one; what the outputs see then fits one matrix product. XLA's own
    convolution is 2.8 times slower on 3 channels, but its gradients (`native`'s) are not.
    """
    batch, *size, channels = x.shape
    height, width = (output_size(n, 3, 1, p) for n, p in zip(size, padding))
    height, width = (height + 1) // 2, (width + 1) // 2
    ends = [
        (low, 2 * (n + 1) - size_ - low)
        for (low, _), n, size_ in zip(padding, (height, width), size)
    ]
    pairs = pad(x, tuple(ends)).reshape(batch, height + 1, 2, width + 1, 2 * channels)
    seen = [
        pairs[:, u // 2 : u // 2 + height, u % 2, j : j + width] for u in range(3) for j in range(2)
    ]
    # [B, h, w, 3 rows x 4 columns x I]: the fourth column meets zeros.
    seen = lax.optimization_barrier(jnp.concatenate(seen, axis=-1))
    wider = jnp.pad(kernel, ((0, 0), (0, 1), (0, 0), (0, 0))).reshape(-1, kernel.shape[3])
    return lax.dot_general(seen, wider, (((3,), (0,)), ((), ())))


def _pixel_pairs_fwd(x, kernel, padding, native):
    return pixel_pairs(x, kernel, padding, native), (x, kernel)


def _pixel_pairs_bwd(padding, native, residuals, dy):
    return jax.vjp(native, *residuals)[1](dy)


pixel_pairs.defvjp(_pixel_pairs_fwd, _pixel_pairs_bwd)
