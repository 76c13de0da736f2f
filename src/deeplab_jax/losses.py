"""Training losses, on logits and labels of one size."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from deeplab_jax import ops


def training_loss(
    outputs: jax.Array | Mapping[str, jax.Array],
    labels: jax.Array | Mapping[str, jax.Array],
    loss: Mapping[str, Any],
    step: jax.Array | int,
    *,
    key: jax.Array | None = None,
    ignore_label: int = 255,
    align_corners: bool = True,
) -> jax.Array:
    """The mean cross-entropy of a network's outputs, a float32 scalar in nats.

    Several outputs, the scales of [V2] and their fusion, or several heads ([FCN] Sec. 5): a loss
    each, summed. One called "auxiliary" counts `auxiliary_weight` times.

    Args:
      outputs: [B, h, w, C] logits, or a dict of them.
      labels: [B, H, W] integer class ids, or `ignore_label`; or a dict of them by the name of the
        output that they are for, "logits" for all others. Class weights go by those.
      loss: `config.loss`; its class_weights are None or numbers.
      step: how many steps are finished, for the ramp of hard-pixel mining.
      key: for sampling the loss ([FCN] Sec. 3.4): each cell of the logits, and with it the labels
        nearest to it, counts with a probability of loss["sample_probability"].
      ignore_label: id of the pixels that count for nothing.
      align_corners: of the resizing of logits or labels.
    """
    if not isinstance(outputs, Mapping):
        outputs = {"logits": outputs}
    if not isinstance(labels, Mapping):
        labels = {"logits": labels}
    mean = 0.0
    for number, (name, logits) in enumerate(outputs.items()):
        truth = labels.get(name, labels["logits"])
        if loss["sample_probability"] < 1:
            cells = jax.random.bernoulli(
                jax.random.fold_in(key, number), loss["sample_probability"], logits.shape[:3]
            )
            kept = ops.resize_nearest(cells, truth.shape[1:3], align_corners)
            truth = jnp.where(kept, truth, ignore_label)
        of_main_head = name in ("logits", "auxiliary") or name not in labels
        total, count = softmax_cross_entropy(
            logits,
            truth,
            ignore_label=ignore_label,
            align_corners=align_corners,
            upsample_logits=loss["upsample_logits"],
            class_weights=loss["class_weights"] if of_main_head else None,
            label_smoothing=loss["label_smoothing"],
            hardest=_mined_share(loss, step),
        )
        weight = loss["auxiliary_weight"] if name == "auxiliary" else 1.0
        count = jnp.maximum(count, 1).astype(total.dtype)  # a batch may be void throughout
        mean += weight * total / count
    return mean


def _mined_share(loss, step):
    """Share of the pixels that is mined at `step`: from all of them linearly to the wanted."""
    share, ramp = loss["top_k_percent_pixels"], loss["hard_example_mining_step"]
    if share == 1:
        return None
    done = jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / ramp) if ramp else 1.0
    return done * share + (1.0 - done)


def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    align_corners: bool = True,
    upsample_logits: bool = True,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    hardest: jax.Array | float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Per-pixel cross-entropy summed over the batch, and how many pixels to divide it by.

    Args:
      logits: [B, h, w, C] float.
      labels: [B, H, W] integer class ids below C, or `ignore_label`.
      ignore_label: id of the pixels that count for nothing.
      align_corners: of the resizing.
      upsample_logits: resize the logits to the labels; [V3] Sec. 4.1 found that thinning the
        labels to the logits (False, as [V1] does) loses the fine annotations.
      class_weights: C factors of the loss, by the pixel's label; None is 1 for all.
      label_smoothing: share of the truth that is spread over all classes (arXiv 1512.00567).
      hardest: hard-pixel mining as the official code does it: only the hardest int(hardest *
        B * H * W) pixels of the whole batch count, void ones included in that number. Pixels
        that tie with the last of them share its place. None: all count.

    Returns:
      (sum of the loss in nats, number of pixels it is over), float32 scalars. Divide the first
      by `max(second, 1)`: a crop may be void throughout. The second counts the labelled pixels
      (not weighted by class); of mined ones those with a loss above 0.
    """
    if not upsample_logits:
        labels = ops.resize_nearest(labels, logits.shape[1:3], align_corners)
    labelled = labels != ignore_label
    weights = labelled.astype(logits.dtype)
    if class_weights is not None:
        by_class = jnp.asarray(class_weights, logits.dtype)
        weights *= jnp.take(by_class, labels.astype(jnp.int32), mode="fill", fill_value=0)
    loss, above_zero = _cross_entropy(
        logits, labels, weights, hardest, label_smoothing, align_corners
    )
    if hardest is None:
        return loss, jnp.sum(labelled, dtype=jnp.float32)
    return loss, above_zero


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(logits, labels, weights, hardest, label_smoothing, align_corners):
    """(sum of the weighted losses of the pixels that count, how many of them are above 0)."""
    arguments = (logits, labels, weights, hardest, label_smoothing, align_corners)
    return _cross_entropy_fwd(*arguments)[0]


def _cross_entropy_fwd(logits, labels, weights, hardest, label_smoothing, align_corners):
    """Computes the gradient beside the loss: only its small form, before the upsampling, is kept.

    At full size there are the logits and one array more; derived by rule there would be three, two
    of them from the forward to the backward pass.
    """
    resize = functools.partial(
        ops.resize_bilinear, size=labels.shape[1:], align_corners=align_corners
    )
    logits, resize_vjp = jax.vjp(resize, logits)
    classes = logits.shape[-1]
    highest = jnp.max(logits, axis=-1, keepdims=True)
    exponential = jnp.exp(logits - highest)
    total = jnp.sum(exponential, axis=-1)
    of_truth = _of_label(logits, labels)
    if label_smoothing:
        mean = jnp.mean(logits, axis=-1)
        of_truth = (1 - label_smoothing) * of_truth + label_smoothing * mean
    losses = weights * (jnp.log(total) + highest[..., 0] - of_truth)  # [B, H, W], none below 0
    counts = jnp.ones_like(losses) if hardest is None else _hardest(losses, hardest)
    truth = (labels[..., None] == jnp.arange(classes, dtype=labels.dtype)).astype(logits.dtype)
    truth = (1 - label_smoothing) * truth + label_smoothing / classes
    gradient = (counts * weights)[..., None] * (exponential / total[..., None] - truth)
    above_zero = jnp.sum(jnp.where(losses != 0, counts, 0), dtype=jnp.float32)
    return (jnp.sum(counts * losses), above_zero), resize_vjp(gradient)[0]


def _cross_entropy_bwd(label_smoothing, align_corners, gradient, cotangents):
    return cotangents[0] * gradient, None, None, None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _of_label(logits, labels):
    """Each pixel's logit of its label, 0 where the label is no class: [B, H, W]."""
    index = labels[..., None].astype(jnp.int32)
    return jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=0)[..., 0]


def _hardest(losses, share):
    """How much each pixel counts, 0 to 1, if the hardest `share` of all counts: [B, H, W]."""
    count = (jnp.asarray(share, jnp.float32) * losses.size).astype(jnp.int32)
    last = jnp.sort(losses, axis=None)[losses.size - count]
    above, level = losses > last, losses == last
    # Untrained, many pixels may tie: by place, as in a sort, the first images would take it all.
    of_above, of_level = (jnp.sum(pixels, dtype=jnp.int32) for pixels in (above, level))
    places = (count - of_above) / jnp.maximum(of_level, 1)
    return jnp.where(above, 1, jnp.where(level, places.astype(losses.dtype), 0))
