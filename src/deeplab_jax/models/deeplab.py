"""DeepLabv3 ([V3]) and DeepLabv3+ ([V3+]): backbone → context → (decoder) → logits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv3x3, ConvBN, Network


class DeepLab(Network):
    """Normalised images → class logits at the head's own stride.

    Attributes:
      context: makes what gathers context, the ASPP; it is called with a dropout. None is [V3]'s
        cascade, whose logits sit on the backbone.
      decoder: makes a stage of the v3+ decoder.
      decoder_output_strides: of the low-level features that each stage refines with, coarse to
        fine; none is v3, whose logits sit on the context.
      dropout: share of what the context gives that is dropped in training.
      auxiliary: makes a second classifier, on the features before the last block, for training.
      classifier: makes the layer that ends in logits.
    """

    context: Callable[..., nn.Module] | None
    decoder: Callable[..., nn.Module]
    decoder_output_strides: Sequence[int]
    dropout: float
    auxiliary: Callable[..., nn.Module] | None
    classifier: Callable[..., nn.Module]

    def classify(self, images, endpoints, batch_norm, train):
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        x = endpoints["features"]
        if self.context is not None:
            x = self.context()(x, batch_norm, dropout)
        for stride in self.decoder_output_strides:
            name = "decoder" if len(self.decoder_output_strides) == 1 else f"decoder_{stride}"
            x = self.decoder(name=name)(x, endpoints[f"low_level_{stride}"], train=batch_norm)
        logits = self.classifier(name="logits")(x)
        if self.auxiliary is None or not (train or self.is_initializing()):
            return logits
        auxiliary = self.auxiliary(name="auxiliary")(endpoints["low_level_16"], batch_norm, train)
        return {"logits": logits, "auxiliary": auxiliary}


class Decoder(nn.Module):
    """[V3+] Fig. 2: reduce the low-level features, upsample the context, concatenate, refine.

    Attributes:
      low_level_features: channels the low-level features are reduced to (Table 1: 48).
      features: channels of the refining convolutions (Table 2: 256).
      convs: how many of them (Table 2: two).
      kernel_size: of them: 3 (Table 2) or 1.
      separable: atrous separable 3x3 convolutions instead of dense ones.
      depthwise_norm: batch norm and ReLU between the halves of the separable ones.
      align_corners: of the bilinear upsampling.
    """

    low_level_features: int
    features: int
    convs: int
    kernel_size: int
    separable: bool
    depthwise_norm: bool
    align_corners: bool
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, context: jax.Array, low_level: jax.Array, train: bool) -> jax.Array:
        """context [B, h, w, I], low_level [B, H, W, L] → [B, H, W, features]."""
        common = {"norm": self.norm, "dtype": self.dtype}
        low_level = ConvBN(self.low_level_features, **common, name="low_level")(low_level, train)
        context = ops.resize_bilinear(context, low_level.shape[1:3], self.align_corners)
        x = jnp.concatenate([context, low_level], axis=-1)
        conv = partial(ConvBN, self.features, **common)
        if self.kernel_size == 3:
            separables = {"separable": self.separable, "depthwise_norm": self.depthwise_norm}
            conv = partial(Conv3x3, self.features, **separables, **common)
        for i in range(self.convs):
            x = conv(name=f"conv{i}")(x, train)
        return x
