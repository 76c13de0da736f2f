"""Training losses, on logits resized to the labels."""

import jax
import jax.numpy as jnp

from deeplab_jax import ops


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int = 255, align_corners: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Per-pixel cross-entropy summed over the batch, and how many pixels it sums.

    The logits are upsampled to the labels, not the labels thinned to the logits: [V3] Sec. 4.1
    found the latter to lose the fine annotations.

    Args:
      logits: [B, h, w, C] float.
      labels: [B, H, W] integer class ids below C, or `ignore_label`.
      ignore_label: id of the pixels that count for nothing.
      align_corners: of the upsampling.

    Returns:
      (sum of the loss in nats, number of labelled pixels), float32 scalars. Divide the first by
      `max(second, 1)`: a crop may be void throughout.
    """
    logits = ops.resize_bilinear(logits, labels.shape[1:], align_corners)
    valid = labels != ignore_label
    # A comparison rather than a gather, whose gradient is a scatter: slow on every platform.
    picked = labels[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
    log_likelihood = jnp.sum(jnp.where(picked, logits, 0), axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - log_likelihood
    return jnp.sum(jnp.where(valid, loss, 0)), jnp.sum(valid, dtype=jnp.float32)
