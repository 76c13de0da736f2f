"""Atrous spatial pyramid pooling of DeepLabv3 and v3+ ([V3] Sec. 3.3, Fig. 5; [V3+] Sec. 3.1)."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import ConvBN, SeparableConvBN


class ASPP(nn.Module):
    """Parallel views of the same features at several rates, concatenated and projected.

    Branches, in the order of the official concat: image pooling, 1x1, one 3x3 a rate.

    Attributes:
      rates: atrous rates of the 3x3 branches; may be empty.
      features: channels of every branch and of the projection.
      separable: atrous separable 3x3 branches (v3+) instead of dense ones (v3).
      image_pooling: add the image-level features.
    """

    rates: Sequence[int]
    features: int
    separable: bool
    image_pooling: bool
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [B, h, w, I] → [B, h, w, features]; `train` concerns batch norm alone."""
        common = {"norm": self.norm, "dtype": self.dtype}
        branches = []
        if self.image_pooling:
            # A mean in float32: h*w bfloat16 terms would lose the small ones.
            pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=ops.at_least_float32(x.dtype))
            pooled = ConvBN(self.features, **common, name="image_pooling")(pooled, train)
            branches.append(jnp.broadcast_to(pooled, (*x.shape[:3], self.features)))
        branches.append(ConvBN(self.features, **common, name="conv1x1")(x, train))
        for i, rate in enumerate(self.rates, start=1):
            if self.separable:
                branch = SeparableConvBN(self.features, rate=rate, **common, name=f"atrous{i}")
            else:
                branch = ConvBN(
                    self.features, kernel_size=3, rate=rate, **common, name=f"atrous{i}"
                )
            branches.append(branch(x, train))
        x = jnp.concatenate(branches, axis=-1)  # [B, h, w, features * len(branches)]
        return ConvBN(self.features, **common, name="projection")(x, train)
