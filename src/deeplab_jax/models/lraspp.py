"""Lite R-ASPP (arXiv 1905.02244, Sec. 6.4) as the official DeepLab has it for MobileNetV3."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv, ConvBN, Network
from deeplab_jax.models.mobilenet_v3 import TF_GATE_SLOPE, hard_sigmoid


class LRASPP(Network):
    """Backbone → features gated by their pooled selves → two classifiers, summed.

    One classifier reads the gated features, upsampled; the other the low-level features.

    Attributes:
      norm: makes the batch norm of the head.
      features: channels of the gated features.
      decoder_output_stride: stride of the low-level features and of the logits.
      classifier: makes a layer that ends in logits.
      pooling_window, pooling_stride: see `ASPP`.
      align_corners: of the upsampling.
    """

    norm: Callable[..., nn.Module]
    features: int
    decoder_output_stride: int
    classifier: Callable[..., nn.Module]
    pooling_window: tuple[int, int] | None
    pooling_stride: tuple[int, int]
    align_corners: bool
    dtype: Any = jnp.float32

    def classify(self, images, endpoints, batch_norm, train):
        x, low_level = endpoints["features"], endpoints[f"low_level_{self.decoder_output_stride}"]

        gate = ops.average_pool(x, self.pooling_window, self.pooling_stride)
        gate = Conv(self.features, dtype=self.dtype, name="image_pooling")(gate)
        gate = hard_sigmoid(gate, TF_GATE_SLOPE)
        gate = ops.resize_bilinear(gate, x.shape[1:3], self.align_corners)
        x = ConvBN(self.features, self.norm, dtype=self.dtype, name="conv1x1")(x, batch_norm) * gate

        x = ops.resize_bilinear(x, low_level.shape[1:3], self.align_corners)
        context = self.classifier(name="logits_context")(x)
        return context + self.classifier(name="logits_low_level")(low_level)
