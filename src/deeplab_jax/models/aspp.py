"""What gathers context between backbone and decoder: ASPP ([V3] Sec. 3.3, Fig. 5; [V3+] Sec. 3.1)
and the dense prediction cell that was searched to replace it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv3x3, ConvBN, SeparableConvBN


class ASPP(nn.Module):
    """Parallel views of the same features at several rates, concatenated and projected.

    Branches, in the order of the official concat: image pooling, 1x1, one 3x3 a rate.

    Attributes:
      rates: atrous rates of the 3x3 branches; may be empty.
      features: channels of every branch and of the projection.
      separable: atrous separable 3x3 branches (v3+) instead of dense ones (v3).
      depthwise_norm: batch norm and ReLU between the halves of the separable ones.
      image_pooling: add the image-level features.
      pooling_window, pooling_stride: None pools the whole image, as the papers do; a window gives
        a grid of pooled features, upsampled with aligned corners.
      convs: 3x3 convolutions that follow the projection (PyTorch's DeepLabv3 has one).
    """

    rates: Sequence[int]
    features: int
    separable: bool
    depthwise_norm: bool
    image_pooling: bool
    norm: Callable[..., nn.Module]
    pooling_window: tuple[int, int] | None = None
    pooling_stride: tuple[int, int] = (1, 1)
    convs: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, dropout: Callable) -> jax.Array:
        """x [B, h, w, I] → [B, h, w, features]; `train` concerns batch norm alone."""
        common = {"norm": self.norm, "dtype": self.dtype}
        conv3x3 = partial(
            Conv3x3,
            self.features,
            separable=self.separable,
            depthwise_norm=self.depthwise_norm,
            **common,
        )
        branches = []
        if self.image_pooling:
            pooled = ops.average_pool(x, self.pooling_window, self.pooling_stride)
            pooled = ConvBN(self.features, **common, name="image_pooling")(pooled, train)
            branches.append(_spread(pooled, x.shape[1:3]))
        branches.append(ConvBN(self.features, **common, name="conv1x1")(x, train))
        for i, rate in enumerate(self.rates, start=1):
            branches.append(conv3x3(rate=rate, name=f"atrous{i}")(x, train))
        x = jnp.concatenate(branches, axis=-1)  # [B, h, w, features * len(branches)]
        x = dropout(ConvBN(self.features, **common, name="projection")(x, train))
        for i in range(self.convs):
            x = conv3x3(name=f"conv{i}")(x, train)
        return x


def _spread(pooled: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Pooled features [B, p, q, C] to the features' size; a single one is everywhere the same."""
    if pooled.shape[1:3] == (1, 1):
        return jnp.broadcast_to(pooled, (pooled.shape[0], *size, pooled.shape[-1]))
    return ops.resize_bilinear(pooled, size, align_corners=True)


# (branch it reads, None for the features; rates (height, width) at output stride 16): the best
# cell found on Cityscapes (arXiv 1809.04184, Fig. 5), as the official code has it.
DENSE_PREDICTION_CELL = [
    (None, (1, 6)),
    (0, (18, 15)),
    (1, (6, 3)),
    (0, (1, 1)),
    (0, (6, 21)),
]


class DensePredictionCell(nn.Module):
    """Five atrous separable branches that feed each other, concatenated and projected.

    Attributes:
      output_stride: of the features; the rates are for 16.
      features: channels of every branch and of the projection.
    """

    output_stride: int
    features: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, dropout: Callable) -> jax.Array:
        """x [B, h, w, I] → [B, h, w, features]; `dropout` acts before the projection."""
        common = {"norm": self.norm, "dtype": self.dtype}
        branches = []
        for i, (source, rates) in enumerate(DENSE_PREDICTION_CELL):
            rate = ops.default_atrous_rates(self.output_stride, rates)
            inputs = x if source is None else branches[source]
            branch = SeparableConvBN(self.features, rate=rate, **common, name=f"branch{i}")
            branches.append(branch(inputs, train))
        x = dropout(jnp.concatenate(branches, axis=-1))
        return ConvBN(self.features, **common, name="projection")(x, train)
