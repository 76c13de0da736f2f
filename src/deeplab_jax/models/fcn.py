"""Fully convolutional networks ([FCN]) from classifiers, and the plain head of PyTorch's ports."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models import googlenet, vgg
from deeplab_jax.models.layers import ConvBN, Network

# (kernel, stride) of every layer on the longest way to a score, [FCN] Table 1; GoogLeNet's last
# one is the average pooling, which the table counts and the network does without.
_INCEPTIONS = {stage: sum(name[0] == stage for name in googlenet.MODULES) for stage in "345"}
LAYERS = {
    "alexnet": ((11, 4), (3, 2), (5, 1), (3, 2), *[(3, 1)] * 3, (3, 2), (6, 1)),
    "vgg16": (*(x for convs, _ in vgg.BLOCKS for x in (*[(3, 1)] * convs, (2, 2))), (7, 1)),
    "googlenet": (
        *((7, 2), (3, 2), (3, 1)),
        *(x for n in _INCEPTIONS.values() for x in ((3, 2), *[(5, 1)] * n)),
        (7, 1),
    ),
}


def receptive_field(layers: Sequence[tuple[int, int]]) -> int:
    """Side in px of what an output depends on: [FCN] Sec. 3's rule for composed layers."""
    field = stride = 1
    for kernel, step in layers:
        field += (kernel - 1) * stride
        stride *= step
    return field


class FCN(Network):
    """Classifier made convolutional → scores, refined by those of shallower layers ([FCN] Sec. 4).

    FCN-32s is without skips, FCN-16s adds scores of pool4, FCN-8s of pool3, too. With their
    scores' kernels at zero each starts as the one before, upsampled twice.

    Attributes:
      fully_connected: makes fc6 and fc7, called with a dropout; None: GoogLeNet has none.
      skips: strides of the added scores, coarse to fine: (), (16,) or (16, 8).
      dropout: share, of the classifier.
      classifier: makes a layer that ends in logits.
    """

    fully_connected: Callable[..., nn.Module] | None
    skips: Sequence[int]
    dropout: float
    classifier: Callable[..., nn.Module]

    def classify(self, images, endpoints, batch_norm, train):
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        x = endpoints["features"]
        if self.fully_connected is None:
            x = dropout(x)
        else:
            layers = self.fully_connected()
            nn.share_scope(self, layers)
            x = layers(x, dropout)
        scores = self.classifier(name="logits")(x)
        for stride in self.skips:
            pool = endpoints[f"pool{stride.bit_length() - 1}"]
            skip = self.classifier(name=f"logits_{stride}")(pool)
            scores = Upsampling(name=f"upsampling_{stride}")(scores)
            scores = scores[:, : skip.shape[1], : skip.shape[2]] + skip
        return scores


class Upsampling(nn.Module):
    """To twice the size by a learned transposed convolution of 4x4 that starts bilinear.

    [B, h, w, C] → [B, 2 h, 2 w, C]. Its borders go on beyond the image, so that it starts as
    `ops.resize_bilinear` of half-pixel centres; the authors' fade to zero there.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", _bilinear, (4, 4, x.shape[-1], x.shape[-1]))
        return ops.upsample_twice(x, kernel.astype(x.dtype))


def _bilinear(key, shape):
    line = jnp.array([0.25, 0.75, 0.75, 0.25])
    return (line[:, None] * line)[:, :, None, None] * jnp.eye(shape[-1])


class PlainFCN(Network):
    """Backbone → `FCNHead`: PyTorch's `fcn_resnet50`.

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
