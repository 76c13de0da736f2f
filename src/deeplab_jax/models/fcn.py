"""The plain FCN head on a dilated backbone, as PyTorch's `fcn_resnet50` has it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models.layers import ConvBN, Network


class FCN(Network):
    """Backbone → `FCNHead`.

    Attributes:
      head: makes the head.
    """

    head: Callable[..., nn.Module]

    def classify(self, images, endpoints, batch_norm, train):
        head = self.head()
        nn.share_scope(self, head)
        return head(endpoints["features"], batch_norm, train)


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels → dropout → classifier.

    Also the auxiliary classifier of PSPNet and PyTorch's DeepLabv3, on the features before the last
    block.

    Attributes:
      norm: makes the batch norm.
      classifier: makes the layer that ends in logits.
    """

    norm: Callable[..., nn.Module]
    classifier: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train_batch_norm: bool, train: bool) -> jax.Array:
        """x [B, h, w, I] → logits [B, h, w, num_classes] float32; `train` lets dropout act."""
        x = ConvBN(x.shape[-1] // 4, self.norm, kernel_size=3, dtype=self.dtype, name="conv")(
            x, train_batch_norm
        )
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return self.classifier(name="logits")(x)
