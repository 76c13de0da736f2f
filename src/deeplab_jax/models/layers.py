"""The layers every DeepLab is made of: atrous convolution, batch norm, and their usual pairings.

`kernel` leaves are ordinary convolutions, `depthwise_kernel` leaves are depthwise ones: the
official code decays only the former. Parameters and batch statistics stay float32 whatever the
compute `dtype`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops

# He's; and the spread of the official head for depthwise kernels, which batch norm rescales.
dense_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
depthwise_init = nn.initializers.truncated_normal(0.33)


class BatchNorm(nn.Module):
    """Batch normalisation over B, H, W as TensorFlow's fused one does it.

    Normalises with the biased variance of the batch but moves the running variance towards the
    unbiased one; flax's own moves it towards the biased one, which shifts weights fine-tuned
    from official checkpoints. Under jit over a sharded batch the statistics are global.

    A norm that `fold_batch_norm` folded into its convolution has a bias alone: it adds that, and
    raises a ValueError if told to train.

    Attributes:
      momentum: share of the old running statistics kept at each step.
      epsilon: added to the variance.
      groups: parts of the batch, one after the other, that are each normalised by their own
        statistics; the running ones move towards the parts' mean.
      dtype: of the output; statistics are computed in float32 or wider.
    """

    momentum: float
    epsilon: float
    groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        wide = ops.at_least_float32(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if not (self.is_initializing() or self.has_variable("params", "scale")):
            if train:
                raise ValueError(
                    f"batch norm {'/'.join(self.path)} is folded into its convolution and cannot "
                    "be trained: train the variables from before fold_batch_norm"
                )
            return (x.astype(wide) + bias.astype(wide)).astype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if train:
            count = x.size // channels // self.groups
            if count == 1 and not self.is_initializing():
                raise ValueError(
                    f"batch norm {'/'.join(self.path)} would see a single value per channel "
                    f"(input {x.shape}): use a larger batch, or train.fine_tune_batch_norm=False"
                )
            x, mean, var = self._by_group(x, scale, bias)
            if not self.is_initializing():
                keep = self.momentum
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
            return x.astype(self.dtype)
        mean, var = running_mean.value.astype(wide), running_var.value.astype(wide)
        factor = scale.astype(wide) * jax.lax.rsqrt(var + self.epsilon)
        return (x.astype(wide) * factor + (bias.astype(wide) - mean * factor)).astype(self.dtype)

    def _by_group(self, x, scale, bias):
        if self.groups == 1:
            return ops.batch_norm(x, scale, bias, self.epsilon)
        parts = x.reshape(self.groups, -1, *x.shape[1:])
        parts, means, variances = jax.vmap(
            lambda part: ops.batch_norm(part, scale, bias, self.epsilon)
        )(parts)
        return parts.reshape(x.shape), means.mean(axis=0), variances.mean(axis=0)


class ConvBN(nn.Module):
    """Dense convolution → batch norm → activation; [B, H, W, I] → [B, H/s, W/s, features].

    Attributes:
      features: output channels.
      norm: makes the batch norm; carries its momentum, epsilon and dtype.
      kernel_size, stride, rate: of the convolution; rate is the atrous rate.
      padding: "same" (TensorFlow's, see `ops.same_padding`), "fixed" (`ops.fixed_padding`) or
        "valid" (none).
      activation: None for a linear layer.
      bias: a bias before the batch norm, which some published weights have.
    """

    features: int
    norm: Callable[..., nn.Module]
    kernel_size: int = 1
    stride: int = 1
    rate: ops.Rate = 1
    padding: str = "same"
    activation: Callable | None = nn.relu
    bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size = (self.kernel_size, self.kernel_size)
        kernel = self.param("kernel", dense_init, (*size, x.shape[-1], self.features))
        padding = _padding(self.padding, x.shape[1:3], size, self.stride, self.rate)
        x = ops.conv2d(*_operands(self, x, kernel), self.stride, self.rate, padding)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(x.dtype)
        x = self.norm(name="norm")(x, train)
        return x if self.activation is None else self.activation(x)


class DepthwiseConvBN(nn.Module):
    """Depthwise convolution → batch norm (None: none) → activation; attributes as `ConvBN`."""

    norm: Callable[..., nn.Module] | None
    kernel_size: int = 3
    stride: int = 1
    rate: ops.Rate = 1
    padding: str = "same"
    activation: Callable | None = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size = (self.kernel_size, self.kernel_size)
        init = dense_init if self.norm is None else depthwise_init  # 9 inputs: 0.47 for 0.33
        kernel = self.param("depthwise_kernel", init, (*size, x.shape[-1]))
        padding = _padding(self.padding, x.shape[1:3], size, self.stride, self.rate)
        x = ops.depthwise_conv2d(*_operands(self, x, kernel), self.stride, self.rate, padding)
        if self.norm is not None:
            x = self.norm(name="norm")(x, train)
        return x if self.activation is None else self.activation(x)


class SeparableConvBN(nn.Module):
    """Atrous separable convolution: depthwise then pointwise, each with batch norm and ReLU.

    [V3+] Sec. 3.1; the heads of the official code put a ReLU after both halves.

    Attributes:
      depthwise_norm: False leaves out batch norm and ReLU between the halves, as some PyTorch
        ports do.
    """

    features: int
    norm: Callable[..., nn.Module]
    rate: ops.Rate = 1
    depthwise_norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = DepthwiseConvBN(
            self.norm if self.depthwise_norm else None,
            rate=self.rate,
            activation=nn.relu if self.depthwise_norm else None,
            dtype=self.dtype,
            name="depthwise",
        )(x, train)
        return ConvBN(self.features, self.norm, dtype=self.dtype, name="pointwise")(x, train)


class Conv3x3(nn.Module):
    """The heads' 3x3 convolution with batch norm and ReLU: separable, or dense."""

    features: int
    norm: Callable[..., nn.Module]
    separable: bool
    depthwise_norm: bool = True
    rate: ops.Rate = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        common = {"rate": self.rate, "dtype": self.dtype}
        if self.separable:
            layer = SeparableConvBN(
                self.features, self.norm, depthwise_norm=self.depthwise_norm, **common
            )
        else:
            layer = ConvBN(self.features, self.norm, kernel_size=3, **common)
        nn.share_scope(self, layer)
        return layer(x, train)


class Conv(nn.Module):
    """A convolution with bias, without batch norm; `padding` None: to ceil(n / stride) outputs."""

    features: int
    kernel_size: int = 1
    rate: ops.Rate = 1
    stride: int = 1
    padding: ops.Padding | None = None
    kernel_init: Callable = dense_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (self.kernel_size, self.kernel_size)
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        padding = self.padding or ops.fixed_padding(size, self.rate)
        x = ops.conv2d(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.rate, padding
        )
        return x + bias.astype(self.dtype)


class Logits(nn.Module):
    """The classifier: a convolution with bias; float32 or wider whatever came before it.

    Attributes:
      num_classes: output channels.
      stddev: of the fresh kernel.
    """

    num_classes: int
    stddev: float = 0.01
    kernel_size: int = 1
    rate: ops.Rate = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = Conv(
            self.num_classes,
            self.kernel_size,
            self.rate,
            kernel_init=nn.initializers.truncated_normal(self.stddev),
            dtype=ops.at_least_float32(x.dtype),
        )
        nn.share_scope(self, layer)
        return layer(x)


class Network(nn.Module):
    """Backbone → what a subclass makes of its endpoints: the call that all networks share.

    Attributes:
      backbone: makes the encoder; a module returning named endpoints.
    """

    backbone: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        train_batch_norm: bool | None = None,
        freeze_backbone: bool = False,
    ) -> jax.Array | dict[str, jax.Array]:
        """images [B, H, W, C] float → logits [B, H/s, W/s, num_classes] float32.

        A network with an auxiliary classifier gives {"logits", "auxiliary"} in training.

        Args:
          images: normalised; any H, W and any number of channels.
          train: dropout acts (needs an rng "dropout") and batch norm uses the batch.
          train_batch_norm: overrides `train` for batch norm alone: False trains with the
            running statistics frozen, as [V3] Sec. 4.1 does at output stride 8.
          freeze_backbone: no gradient reaches the backbone, and its running statistics stay.
        """
        batch_norm = train if train_batch_norm is None else train_batch_norm
        endpoints = self.backbone(name="backbone")(images, train=batch_norm and not freeze_backbone)
        if freeze_backbone:
            endpoints = jax.lax.stop_gradient(endpoints)
        return self.classify(images, endpoints, batch_norm, train)

    def classify(
        self,
        images: jax.Array,
        endpoints: Mapping[str, jax.Array],
        batch_norm: bool,
        train: bool,
    ) -> jax.Array | dict[str, jax.Array]:
        """The logits, from the backbone's endpoints; called inside the compact `__call__`."""
        raise NotImplementedError


def rematerialised(unit: type[nn.Module], remat: bool) -> type[nn.Module]:
    """`unit`, called with (x, train); with `remat` the backward pass keeps its input alone and
    computes the rest again."""
    return nn.remat(unit, static_argnums=(2,)) if remat else unit


def _operands(layer: nn.Module, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A convolution's operands, rounded to the layer's dtype.

    Before a folded batch norm, which is inference, they are widened again: then bfloat16 rounds a
    layer's result once, with its bias, and not the convolution's, too, which costs labels (0.4 %
    of a PASCAL photograph's, up to 3.7 %; experiments/README.md). What it costs on a GPU was not
    measured.
    """
    x, kernel = x.astype(layer.dtype), kernel.astype(layer.dtype)
    norm = layer.get_variable("params", "norm")
    if norm is None or "scale" in norm:
        return x, kernel
    wide = ops.at_least_float32(x.dtype)
    return x.astype(wide), kernel.astype(wide)


def _padding(name, size, kernel, stride, rate) -> ops.Padding:
    if name == "same":
        return ops.same_padding(size, kernel, stride, rate)
    if name == "fixed":
        return ops.fixed_padding(kernel, rate)
    if name == "valid":
        return ((0, 0), (0, 0))
    raise ValueError(f"padding must be 'same', 'fixed' or 'valid', not {name!r}")
