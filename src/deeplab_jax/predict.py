"""From images to label maps: the one place where logits become labels."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import ops
from deeplab_jax.data.pipeline import padded_size
from deeplab_jax.data.transforms import normalization as mean_and_std
from deeplab_jax.data.transforms import pad_to


def normalize(images: jax.Array, name: str) -> jax.Array:
    """images [B, H, W, C] in 0..255 → what the network was trained on; see `NORMALIZATIONS`."""
    mean, std = mean_and_std(name, images.shape[-1])
    # One multiply and one add, as the reference: x * (2/255) - 1.
    x = images.astype(jnp.float32) * (1 / std) - mean / std
    if name.endswith("_bgr"):
        x = jnp.concatenate([x[..., 2::-1], x[..., 3:]], axis=-1)
    return x


@functools.partial(
    jax.jit,
    static_argnames=(
        "module", "normalization", "align_corners", "eval_scales", "add_flipped_images",
    ),
)  # fmt: skip
def label_maps(
    module: nn.Module,
    variables: Any,
    images: jax.Array,
    *,
    normalization: str,
    align_corners: bool,
    eval_scales: tuple[float, ...] = (1.0,),
    add_flipped_images: bool = False,
) -> jax.Array:
    """Padded images [B, H, W, C] in 0..255 → labels [B, H, W] uint8 (int32 past 256 classes).

    The logits, not the labels, are upsampled to the image ([V2] Sec. 3.1). With several scales or
    mirrored images the answer is the class of the highest mean probability ([V3] Sec. 4.1).
    """
    logits = functools.partial(
        _logits, module, variables, normalization=normalization, align_corners=align_corners
    )
    if tuple(eval_scales) == (1.0,) and not add_flipped_images:
        answer = logits(images, 1.0)
    else:
        answer = sum(
            jax.nn.softmax(logits(images, scale, mirror), axis=-1)
            for scale in eval_scales
            for mirror in ((False, True) if add_flipped_images else (False,))
        )
    return jnp.argmax(answer, axis=-1).astype(jnp.uint8 if answer.shape[-1] <= 256 else jnp.int32)


def _logits(module, variables, images, scale, mirror=False, *, normalization, align_corners):
    """Logits [B, H, W, C] of the images seen at `scale` and mirrored, back in their own frame."""
    size = images.shape[1:3]
    scaled = ops.resize_bilinear(
        images.astype(jnp.float32), ops.scaled_size(size, scale, align_corners), align_corners
    )
    outputs = module.apply(
        variables, normalize(scaled[:, :, ::-1] if mirror else scaled, normalization)
    )
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    if mirror:
        logits = logits[:, :, ::-1]
    if scale < 1 and align_corners:
        # The official code's detour: first to the size that logits of the whole image have.
        sides = (max(max(array.shape[1:3]) - 1, 1) for array in (scaled, logits))
        stride = 2 ** round(math.log2(next(sides) / next(sides)))
        logits = ops.resize_bilinear(logits, ops.scaled_size(size, 1 / stride, True), True)
    return ops.resize_bilinear(logits, size, align_corners)


def predict(
    module: nn.Module,
    variables: Any,
    image: np.ndarray,
    *,
    crop_size: tuple[int, int] | None = None,
    normalization: str = "zero_mean",
    align_corners: bool = True,
    eval_scales: Sequence[float] = (1.0,),
    add_flipped_images: bool = False,
) -> np.ndarray:
    """Segments one image of any size.

    Args:
      module: from `models.build`.
      variables: {"params", "batch_stats"}.
      image: [H, W, C] uint8, RGB first.
      crop_size: (height, width) to pad to with the mean pixel, if the image fits; None pads to
        the next 64 k + 1.
      normalization: the one the weights were trained with.
      align_corners: of the logits' upsampling and of scaled images.
      eval_scales: the image is seen at each of these; their probabilities are averaged.
      add_flipped_images: and mirrored at each.

    Returns:
      Class ids [H, W] uint8.

    Raises:
      ValueError: if `image` is not [H, W, C] uint8.
    """
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be [H, W, C] uint8, not {image.dtype} {image.shape}")
    height, width, channels = image.shape
    pad_value = mean_and_std(normalization, channels)[0]
    padded = pad_to(image.astype(np.float32), padded_size((height, width), crop_size), pad_value)
    labels = label_maps(
        module,
        variables,
        padded[None],
        normalization=normalization,
        align_corners=align_corners,
        eval_scales=tuple(eval_scales),
        add_flipped_images=add_flipped_images,
    )
    return np.asarray(labels[0, :height, :width])
