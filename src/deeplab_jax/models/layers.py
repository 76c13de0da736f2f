"""The layers every DeepLab is made of: atrous convolution, batch norm, and their usual pairings.

`kernel` leaves are ordinary convolutions, `depthwise_kernel` leaves are depthwise ones: the
official code decays only the former. Parameters and batch statistics stay float32 whatever the
compute `dtype`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops

# He's for dense kernels; the spreads of the official head for depthwise kernels and logits.
dense_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
depthwise_init = nn.initializers.truncated_normal(0.33)
logits_init = nn.initializers.truncated_normal(0.01)


class BatchNorm(nn.Module):
    """Batch normalisation over B, H, W as TensorFlow's fused one does it.

    Normalises with the biased variance of the batch but moves the running variance towards the
    unbiased one; flax's own moves it towards the biased one, which shifts weights fine-tuned
    from official checkpoints. Under jit over a sharded batch the statistics are global.

    Attributes:
      momentum: share of the old running statistics kept at each step.
      epsilon: added to the variance.
      dtype: of the output; statistics are computed in float32 or wider.
    """

    momentum: float
    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if train:
            count = x.size // channels
            if count == 1 and not self.is_initializing():
                raise ValueError(
                    f"batch norm {'/'.join(self.path)} would see a single value per channel "
                    f"(input {x.shape}): use a larger batch, or train.fine_tune_batch_norm=False"
                )
            x, mean, var = ops.batch_norm(x, scale, bias, self.epsilon)
            if not self.is_initializing():
                keep = self.momentum
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
            return x.astype(self.dtype)
        factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
        wide = x.astype(ops.at_least_float32(x.dtype))
        factor, bias = factor.astype(wide.dtype), bias.astype(wide.dtype)
        shift = bias - running_mean.value.astype(wide.dtype) * factor
        return (wide * factor + shift).astype(self.dtype)


class ConvBN(nn.Module):
    """Dense convolution → batch norm → activation; [B, H, W, I] → [B, H/s, W/s, features].

    Attributes:
      features: output channels.
      norm: makes the batch norm; carries its momentum, epsilon and dtype.
      kernel_size, stride, rate: of the convolution; rate is the atrous rate.
      padding: "same" (TensorFlow's, see `ops.same_padding`) or "fixed" (`ops.fixed_padding`).
      activation: None for a linear layer.
    """

    features: int
    norm: Callable[..., nn.Module]
    kernel_size: int = 1
    stride: int = 1
    rate: int = 1
    padding: str = "same"
    activation: Callable | None = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size = (self.kernel_size, self.kernel_size)
        kernel = self.param("kernel", dense_init, (*size, x.shape[-1], self.features))
        padding = _padding(self.padding, x.shape[1:3], size, self.stride, self.rate)
        x = ops.conv2d(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.rate, padding
        )
        x = self.norm(name="norm")(x, train)
        return x if self.activation is None else self.activation(x)


class DepthwiseConvBN(nn.Module):
    """3x3 depthwise convolution → batch norm → activation; attributes as `ConvBN`."""

    norm: Callable[..., nn.Module]
    kernel_size: int = 3
    stride: int = 1
    rate: int = 1
    padding: str = "same"
    activation: Callable | None = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size = (self.kernel_size, self.kernel_size)
        kernel = self.param("depthwise_kernel", depthwise_init, (*size, x.shape[-1]))
        padding = _padding(self.padding, x.shape[1:3], size, self.stride, self.rate)
        x = ops.depthwise_conv2d(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.rate, padding
        )
        x = self.norm(name="norm")(x, train)
        return x if self.activation is None else self.activation(x)


class SeparableConvBN(nn.Module):
    """Atrous separable convolution: depthwise then pointwise, each with batch norm and ReLU.

    [V3+] Sec. 3.1; the heads of the official code put a ReLU after both halves.
    """

    features: int
    norm: Callable[..., nn.Module]
    rate: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = DepthwiseConvBN(self.norm, rate=self.rate, dtype=self.dtype, name="depthwise")(x, train)
        return ConvBN(self.features, self.norm, dtype=self.dtype, name="pointwise")(x, train)


class Logits(nn.Module):
    """The classifier: a 1x1 convolution with bias; float32 whatever came before it."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", logits_init, (1, 1, x.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        x = x.astype(ops.at_least_float32(x.dtype))
        return ops.conv2d(x, kernel, stride=1, rate=1, padding=((0, 0), (0, 0))) + bias


def _padding(name, size, kernel, stride, rate) -> ops.Padding:
    if name == "same":
        return ops.same_padding(size, kernel, stride, rate)
    if name == "fixed":
        return ops.fixed_padding(kernel, rate)
    raise ValueError(f"padding must be 'same' or 'fixed', not {name!r}")
