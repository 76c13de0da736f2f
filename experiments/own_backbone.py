"""A backbone of one's own: any Flax module with named endpoints, here a small plain ConvNet.

    python -m deeplab_jax.main --config=configs/v3plus.py --workdir=/tmp/own \\
        --config.model.backbone=experiments.own_backbone:ConvNet

It is asked for by "module:attribute" (the module is imported from where Python is run) or handed to
`models.build(backbone=ConvNet, ...)`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import ConvBN


class ConvNet(nn.Module):
    """Normalised images [B, H, W, C] → {"features" [B, h, w, 256], "low_level_4", "low_level_8"}.

    Attributes:
      output_stride, norm, dtype: given by `models.build`; norm makes a batch norm.
    """

    output_stride: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        endpoints, reached = {}, 1
        plan = ops.strides_and_rates([2, 2, 2, 2, 1], self.output_stride)
        for i, (features, (stride, rate)) in enumerate(zip((32, 64, 128, 256, 256), plan)):
            x = ConvBN(
                features,
                self.norm,
                kernel_size=3,
                stride=stride,
                rate=rate,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x, train)
            reached *= stride
            endpoints[f"low_level_{reached}"] = x
        return endpoints | {"features": x}
