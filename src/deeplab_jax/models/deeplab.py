"""DeepLabv3 ([V3]) and DeepLabv3+ ([V3+]): backbone → context → (decoder) → logits."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv3x3, ConvBN, Logits


class DeepLab(nn.Module):
    """Normalised images → class logits at the head's own stride.

    Attributes:
      backbone: makes the encoder; a module returning named endpoints.
      context: makes what gathers context, the ASPP; it is called with a dropout.
      decoder: makes the v3+ decoder; None is v3, whose logits sit on the ASPP itself.
      decoder_output_stride: stride of the low-level features the decoder refines with.
      num_classes: channels of the logits, background included.
    """

    backbone: Callable[..., nn.Module]
    context: Callable[..., nn.Module]
    decoder: Callable[..., nn.Module] | None
    decoder_output_stride: int | None
    num_classes: int

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        train_batch_norm: bool | None = None,
        freeze_backbone: bool = False,
    ) -> jax.Array:
        """images [B, H, W, C] float → logits [B, H/s, W/s, num_classes] float32.

        Args:
          images: normalised; any H, W and any number of channels.
          train: dropout acts (needs an rng "dropout") and batch norm uses the batch.
          train_batch_norm: overrides `train` for batch norm alone: False trains with the
            running statistics frozen, as [V3] Sec. 4.1 does at output stride 8.
          freeze_backbone: no gradient reaches the backbone, and its running statistics stay.
        """
        batch_norm = train if train_batch_norm is None else train_batch_norm
        dropout = nn.Dropout(0.1, deterministic=not train)
        endpoints = self.backbone(name="backbone")(images, train=batch_norm and not freeze_backbone)
        if freeze_backbone:
            endpoints = jax.lax.stop_gradient(endpoints)
        x = self.context()(endpoints["features"], batch_norm, dropout)
        if self.decoder is not None:
            low_level = endpoints[f"low_level_{self.decoder_output_stride}"]
            x = self.decoder(name="decoder")(x, low_level, train=batch_norm)
        return Logits(self.num_classes, name="logits")(x)


class Decoder(nn.Module):
    """[V3+] Fig. 2: reduce the low-level features, upsample the context, concatenate, refine.

    Attributes:
      low_level_features: channels the low-level features are reduced to (Table 1: 48).
      features: channels of the refining 3x3 convolutions (Table 2: 256).
      convs: how many of them (Table 2: two).
      separable: atrous separable 3x3 convolutions instead of dense ones.
      depthwise_norm: batch norm and ReLU between the halves of the separable ones.
      align_corners: of the bilinear upsampling.
    """

    low_level_features: int
    features: int
    convs: int
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
        for i in range(self.convs):
            x = Conv3x3(
                self.features,
                separable=self.separable,
                depthwise_norm=self.depthwise_norm,
                **common,
                name=f"conv{i}",
            )(x, train)
        return x
