"""Builds any model of the papers from the keywords of `config.model`."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.aspp import ASPP
from deeplab_jax.models.deeplab import Decoder, DeepLab
from deeplab_jax.models.layers import BatchNorm
from deeplab_jax.models.mobilenet import MobileNetV2
from deeplab_jax.models.xception import UNITS as XCEPTIONS
from deeplab_jax.models.xception import Xception

NAMES = ("v3", "v3plus")
BACKBONES = (*XCEPTIONS, "mobilenet_v2")
OUTPUT_STRIDES = (8, 16, 32)

# (decay of the running statistics, epsilon) of the official code.
BACKBONE_NORM = {"xception": (0.9997, 1e-3), "mobilenet": (0.997, 1e-3)}
HEAD_NORM = (0.9997, 1e-5)


def build(
    name: str,
    backbone: str,
    num_classes: int,
    *,
    output_stride: int = 16,
    atrous_rates: Sequence[int] | str | None = "auto",
    multi_grid: Sequence[int] | None = None,
    image_pooling: bool = True,
    separable: bool = True,
    aspp_channels: int = 256,
    decoder_output_stride: int | None = 4,
    decoder_channels: int = 256,
    low_level_channels: int = 48,
    width_multiplier: float = 1.0,
    align_corners: bool = True,
    padding: str = "same",
    batch_norm_decay: float | None = None,
    batch_norm_epsilon: float | None = None,
    dtype: str = "float32",
) -> nn.Module:
    """Builds the Flax module whose variables are {"params", "batch_stats"}.

    The variables do not depend on `output_stride` and `atrous_rates` (as long as the number of
    rates stays): weights trained at stride 16 apply at 8, which is the papers' evaluation.

    Args:
      name: "v3plus" ([V3+], with decoder) or "v3" ([V3], without).
      backbone: one of `BACKBONES`.
      num_classes: including background.
      output_stride: input size over feature size: 8, 16 or 32.
      atrous_rates: of the ASPP's 3x3 branches. "auto" follows the output stride (32 → 3,6,9;
        16 → 6,12,18; 8 → 12,24,36); None or () leaves these branches out.
      multi_grid: rates inside the last block, relative to the block's own (Xception); None is
        (1, 1, 1).
      image_pooling: image-level features in the ASPP.
      separable: depthwise separable 3x3 convolutions in ASPP and decoder.
      aspp_channels: channels of each ASPP branch and of its projection.
      decoder_output_stride: stride of the decoder's low-level features (4, 8 or 16); None is no
        decoder. v3 has none whatever this says.
      decoder_channels, low_level_channels: channels of the decoder's 3x3 convolutions and of
        its reduced low-level features.
      width_multiplier: of MobileNetV2.
      align_corners: of the upsampling in the decoder.
      padding: of MobileNetV2: "same" (TensorFlow) or "fixed" (PyTorch).
      batch_norm_decay, batch_norm_epsilon: None takes the official code's, which differ between
        backbone and head; a decay given here goes for both, an epsilon for the backbone.
      dtype: of the computation, "float32", "bfloat16" or "float64"; parameters and batch
        statistics keep float32, and so do the logits.

    Raises:
      ValueError: for an unknown or impossible choice, naming those there are.
    """
    _check("name", name, NAMES)
    _check("backbone", backbone, BACKBONES)
    _check("output_stride", output_stride, OUTPUT_STRIDES)
    _check("decoder_output_stride", decoder_output_stride, (None, 4, 8, 16))
    _check("padding", padding, ("same", "fixed"))
    _check("dtype", dtype, ("float32", "bfloat16", "float64"))
    if isinstance(atrous_rates, str):
        _check("atrous_rates", atrous_rates, ("auto",))
        atrous_rates = ops.default_atrous_rates(output_stride)
    if width_multiplier != 1 and backbone != "mobilenet_v2":
        raise ValueError(f"width_multiplier applies to mobilenet_v2, not to {backbone}")
    if multi_grid and not backbone.startswith("xception"):
        raise ValueError(f"multi_grid does not apply to {backbone}")
    if multi_grid and len(multi_grid) != 3:
        raise ValueError(f"multi_grid takes three rates, not {tuple(multi_grid)}")

    dtype = jnp.dtype(dtype)
    decay, epsilon = BACKBONE_NORM[backbone.split("_")[0]]
    backbone_norm = partial(
        BatchNorm,
        momentum=batch_norm_decay or decay,
        epsilon=batch_norm_epsilon or epsilon,
        dtype=dtype,
    )
    decay, epsilon = HEAD_NORM
    head = {
        "norm": partial(
            BatchNorm, momentum=batch_norm_decay or decay, epsilon=epsilon, dtype=dtype
        ),
        "separable": separable,
        "dtype": dtype,
    }

    if backbone == "mobilenet_v2":
        encoder = partial(
            MobileNetV2,
            output_stride=output_stride,
            norm=backbone_norm,
            width_multiplier=width_multiplier,
            padding=padding,
            dtype=dtype,
        )
    else:
        encoder = partial(
            Xception,
            variant=backbone,
            output_stride=output_stride,
            norm=backbone_norm,
            multi_grid=tuple(multi_grid or (1, 1, 1)),
            dtype=dtype,
        )
    context = partial(
        ASPP,
        rates=tuple(atrous_rates or ()),
        features=aspp_channels,
        image_pooling=image_pooling,
        **head,
    )
    decoder = None
    if name == "v3plus" and decoder_output_stride is not None:
        decoder = partial(
            Decoder,
            low_level_features=low_level_channels,
            features=decoder_channels,
            align_corners=align_corners,
            **head,
        )
    return DeepLab(encoder, context, decoder, decoder_output_stride, num_classes)


def _check(keyword: str, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{keyword} {value!r} is not one of {', '.join(map(repr, allowed))}")
