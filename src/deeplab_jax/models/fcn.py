"""The plain FCN head on a dilated backbone, as PyTorch's `fcn_resnet50` has it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models.layers import ConvBN, Logits


class FCN(nn.Module):
    """Backbone → 3x3 convolution to a quarter of the channels → classifier.

    Attributes:
      backbone: makes the encoder; a module returning named endpoints.
      norm: makes the batch norm of the head.
      num_classes: channels of the logits, background included.
    """

    backbone: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    num_classes: int
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
        endpoints = self.backbone(name="backbone")(images, train=batch_norm and not freeze_backbone)
        if freeze_backbone:
            endpoints = jax.lax.stop_gradient(endpoints)
        x = endpoints["features"]
        x = ConvBN(x.shape[-1] // 4, self.norm, kernel_size=3, dtype=self.dtype, name="conv")(
            x, batch_norm
        )
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return Logits(self.num_classes, name="logits")(x)
