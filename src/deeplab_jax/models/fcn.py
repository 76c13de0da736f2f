"""The plain FCN head on a dilated backbone, as PyTorch's `fcn_resnet50` has it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models.layers import ConvBN, Logits, run_backbone


class FCN(nn.Module):
    """Backbone → `FCNHead`.

    Attributes:
      backbone: makes the encoder; a module returning named endpoints.
      head: makes the head.
    """

    backbone: Callable[..., nn.Module]
    head: Callable[..., nn.Module]

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
        head = self.head()
        nn.share_scope(self, head)
        return head(endpoints["features"], batch_norm, train)


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels → dropout → classifier.

    Also the auxiliary classifier of PSPNet and PyTorch's DeepLabv3, on the features before the last
    block.

    Attributes:
      norm: makes the batch norm.
      num_classes: channels of the logits, background included.
    """

    norm: Callable[..., nn.Module]
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train_batch_norm: bool, train: bool) -> jax.Array:
        """x [B, h, w, I] → logits [B, h, w, num_classes] float32; `train` lets dropout act."""
        x = ConvBN(x.shape[-1] // 4, self.norm, kernel_size=3, dtype=self.dtype, name="conv")(
            x, train_batch_norm
        )
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return Logits(self.num_classes, name="logits")(x)
