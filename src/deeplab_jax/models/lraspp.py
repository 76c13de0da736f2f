"""Lite R-ASPP (arXiv 1905.02244, Sec. 6.4) as the official DeepLab has it for MobileNetV3."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv, ConvBN, Logits, run_backbone
from deeplab_jax.models.mobilenet_v3 import TF_GATE_SLOPE, hard_sigmoid


class LRASPP(nn.Module):
    """Backbone → features gated by their pooled selves → two classifiers, summed.

    One classifier reads the gated features, upsampled; the other the low-level features.

    Attributes:
      backbone: makes the encoder; a module returning named endpoints.
      norm: makes the batch norm of the head.
      features: channels of the gated features.
      decoder_output_stride: stride of the low-level features and of the logits.
      num_classes: channels of the logits, background included.
      pooling_window, pooling_stride: see `ASPP`.
      align_corners: of the upsampling.
    """

    backbone: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    features: int
    decoder_output_stride: int
    num_classes: int
    pooling_window: tuple[int, int] | None
    pooling_stride: tuple[int, int]
    align_corners: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        train_batch_norm: bool | None = None,
        freeze_backbone: bool = False,
    ) -> jax.Array:
        """images [B, H, W, C] float → logits [B, H/s, W/s, num_classes] float32."""
        batch_norm = train if train_batch_norm is None else train_batch_norm
        endpoints = run_backbone(self.backbone, images, batch_norm, freeze_backbone)
        x, low_level = endpoints["features"], endpoints[f"low_level_{self.decoder_output_stride}"]

        gate = ops.average_pool(x, self.pooling_window, self.pooling_stride)
        gate = Conv(self.features, dtype=self.dtype, name="image_pooling")(gate)
        gate = hard_sigmoid(gate, TF_GATE_SLOPE)
        gate = ops.resize_bilinear(gate, x.shape[1:3], self.align_corners)
        x = ConvBN(self.features, self.norm, dtype=self.dtype, name="conv1x1")(x, batch_norm) * gate

        x = ops.resize_bilinear(x, low_level.shape[1:3], self.align_corners)
        context = Logits(self.num_classes, name="logits_context")(x)
        return context + Logits(self.num_classes, name="logits_low_level")(low_level)
