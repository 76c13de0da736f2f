"""Training losses, on logits resized to the labels."""

import functools

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
    valid = labels != ignore_label
    loss = _cross_entropy(logits, labels, valid, align_corners)
    return loss, jnp.sum(valid, dtype=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(logits, labels, valid, align_corners):
    logits = ops.resize_bilinear(logits, labels.shape[1:], align_corners)
    loss = jax.nn.logsumexp(logits, axis=-1) - _of_label(logits, labels)
    return jnp.sum(jnp.where(valid, loss, 0))


def _cross_entropy_fwd(logits, labels, valid, align_corners):
    """Computes the gradient beside the loss: only its small form, before the upsampling, is kept.

    At full size there are the logits and one array more; derived by rule there would be three, two
    of them from the forward to the backward pass.
    """
    resize = functools.partial(
        ops.resize_bilinear, size=labels.shape[1:], align_corners=align_corners
    )
    logits, resize_vjp = jax.vjp(resize, logits)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    exponential = jnp.exp(logits - highest)
    total = jnp.sum(exponential, axis=-1)
    loss = jnp.log(total) + highest[..., 0] - _of_label(logits, labels)
    truth = labels[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
    gradient = exponential / total[..., None] - truth.astype(logits.dtype)
    gradient = jnp.where(valid[..., None], gradient, 0)
    return jnp.sum(jnp.where(valid, loss, 0)), resize_vjp(gradient)[0]


def _cross_entropy_bwd(align_corners, gradient, cotangent):
    return cotangent * gradient, None, None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _of_label(logits, labels):
    """Each pixel's logit of its label, 0 where the label is no class: [B, H, W]."""
    index = labels[..., None].astype(jnp.int32)
    return jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=0)[..., 0]
