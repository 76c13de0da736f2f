"""DeepLab v1 ([V1]): VGG-16 made fully convolutional, and its multi-scale prediction."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv, Network


def field_of_view(kernel_size: int, rate: int, output_stride: int = 8) -> int:
    """Nominal field of view of fc6 in pixels: (kernel_size - 1) * rate * output_stride + 32.

    The column of [V2] Table 1: what the taps span, and at each the 32 px a feature of the original
    VGG-16 stands for. The convolutions below see beyond that: an output of the 224 px networks
    depends on 419 px.
    """
    return (kernel_size - 1) * rate * output_stride + 32


class FullyConnected(nn.Module):
    """VGG-16's fc6 → fc7 as convolutions, ReLU and dropout behind each ([V1] Sec. 3.2).

    Attributes:
      kernel_size, rate: of fc6; at output stride 8 the original's are 7 and 4, LargeFOV's 3 and 12.
      features: channels of both: VGG-16's 4096, LargeFOV's 1024.
      padding: around fc6; None is as much on all sides.
    """

    kernel_size: int
    rate: int
    features: int
    padding: ops.Padding | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, dropout: Callable) -> jax.Array:
        """x [B, h, w, I] → [B, h, w, features]."""
        taps = {"kernel_size": self.kernel_size, "rate": self.rate, "padding": self.padding}
        fc6 = Conv(self.features, **taps, dtype=self.dtype, name="fc6")
        x = dropout(nn.relu(fc6(x)))
        return dropout(nn.relu(Conv(self.features, dtype=self.dtype, name="fc7")(x)))


class MultiScaleFeatures(nn.Module):
    """MSc: the image and the first four poolings, each through 3x3x128 and 1x1x128 ([V1] Sec. 4.3).

    The 3x3 convolutions bring all to one size: at output stride 8 their strides are 8, 4, 2, 1, 1,
    as in the released nets.

    Attributes:
      output_stride: of the backbone.
    """

    output_stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, endpoints: Mapping[str, jax.Array], dropout: Callable
    ) -> jax.Array:
        """images [B, H, W, C] and the backbone's endpoints → [B, h, w, 5 * 128]."""
        sources = {"image": images} | {f"pool{i}": endpoints[f"pool{i}"] for i in range(1, 5)}
        outputs = []
        for halvings, (name, x) in enumerate(sources.items()):
            stride = max(1, self.output_stride // 2**halvings)
            conv3x3 = Conv(128, 3, stride=stride, dtype=self.dtype, name=f"{name}_conv3x3")
            x = dropout(nn.relu(conv3x3(x)))
            x = dropout(nn.relu(Conv(128, dtype=self.dtype, name=f"{name}_conv1x1")(x)))
            outputs.append(x)
        return jnp.concatenate(outputs, axis=-1)


class DeepLabV1(Network):
    """Backbone → fc6 → fc7 → classifier ([V1] Sec. 3), with or without multi-scale features.

    Attributes:
      fully_connected: makes fc6 and fc7; it is called with a dropout.
      multi_scale: makes what the classifier reads beside fc7; None is nothing.
      classifier: makes a layer that ends in logits.
    """

    fully_connected: Callable[..., nn.Module]
    multi_scale: Callable[..., nn.Module] | None
    classifier: Callable[..., nn.Module]

    def classify(self, images, endpoints, batch_norm, train):
        dropout = nn.Dropout(0.5, deterministic=not train)
        layers = self.fully_connected()
        nn.share_scope(self, layers)
        x = layers(endpoints["features"], dropout)
        if self.multi_scale is not None:
            beside = self.multi_scale(name="multi_scale")(images, endpoints, dropout)
            x = jnp.concatenate([x, beside], axis=-1)
        return self.classifier(name="logits")(x)
