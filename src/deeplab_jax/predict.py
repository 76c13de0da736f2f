"""From images to label maps: the one place where logits become labels."""

import functools
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
    return images.astype(jnp.float32) * (1 / std) - mean / std


@functools.partial(jax.jit, static_argnames=("module", "normalization", "align_corners"))
def label_maps(
    module: nn.Module,
    variables: Any,
    images: jax.Array,
    *,
    normalization: str,
    align_corners: bool,
) -> jax.Array:
    """Padded images [B, H, W, C] in 0..255 → labels [B, H, W] uint8 (int32 past 256 classes).

    The logits, not the labels, are upsampled to the image ([V2] Sec. 3.1).
    """
    logits = module.apply(variables, normalize(images, normalization))
    logits = ops.resize_bilinear(logits, images.shape[1:3], align_corners)
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8 if logits.shape[-1] <= 256 else jnp.int32)


def predict(
    module: nn.Module,
    variables: Any,
    image: np.ndarray,
    *,
    crop_size: tuple[int, int] | None = None,
    normalization: str = "zero_mean",
    align_corners: bool = True,
) -> np.ndarray:
    """Segments one image of any size.

    Args:
      module: from `models.build`.
      variables: {"params", "batch_stats"}.
      image: [H, W, C] uint8, RGB first.
      crop_size: (height, width) to pad to with the mean pixel, if the image fits; None pads to
        the next 64 k + 1.
      normalization: the one the weights were trained with.
      align_corners: of the logits' upsampling.

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
    )
    return np.asarray(labels[0, :height, :width])
