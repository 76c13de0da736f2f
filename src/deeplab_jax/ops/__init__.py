"""Pure array maths of DeepLab: atrous convolution, padding, stride→rate arithmetic, resizing.

Arrays are [B, H, W, C]; sizes are (height, width); a rate is the paper's atrous rate r (the
spacing of the filter taps, [V3] Sec. 3.1). Nothing here knows a model. Where XLA is slow on a
platform an operation has a form, and a gradient, of its own there; benchmarks/NOTES.md has the
measurements behind each choice.
"""

from deeplab_jax.ops.convolution import (
    Convolution,
    conv2d,
    dense_native,
    depthwise_conv2d,
    observing,
)
from deeplab_jax.ops.crops import crops
from deeplab_jax.ops.depthwise import depthwise_native
from deeplab_jax.ops.geometry import (
    Padding,
    Rate,
    at_least_float32,
    default_atrous_rates,
    fixed_padding,
    pair,
    same_padding,
    scaled_size,
    strides_and_rates,
)
from deeplab_jax.ops.normalization import batch_norm
from deeplab_jax.ops.pooling import average_pool, max_pool, max_pool_native
from deeplab_jax.ops.resize import resize_bilinear, resize_nearest, upsample_twice

__all__ = [
    "Convolution",
    "Padding",
    "Rate",
    "at_least_float32",
    "average_pool",
    "batch_norm",
    "conv2d",
    "crops",
    "default_atrous_rates",
    "dense_native",
    "depthwise_conv2d",
    "depthwise_native",
    "fixed_padding",
    "max_pool",
    "max_pool_native",
    "observing",
    "pair",
    "resize_bilinear",
    "resize_nearest",
    "same_padding",
    "scaled_size",
    "strides_and_rates",
    "upsample_twice",
]
