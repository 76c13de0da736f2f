"""Sizes, strides, atrous rates and padding: what a layer's shape follows from."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp

Padding = tuple[tuple[int, int], tuple[int, int]]
Rate = int | tuple[int, int]  # both axes alike, or (height, width)


def at_least_float32(dtype) -> jnp.dtype:
    """The dtype to sum and interpolate in: float32, or float64 for float64."""
    return jnp.dtype("float64" if dtype == jnp.float64 else "float32")


def strides_and_rates(
    strides: Sequence[int], output_stride: int | None, dilation_start: str = "after"
) -> list[tuple[int, int]]:
    """Turns strides into atrous rates once `output_stride` is reached ([V3] Sec. 3.2).

    A layer whose stride is taken away keeps the present rate; its would-be stride spaces the
    taps of the layers *after* it, so every filter still sees the samples it was trained on.

    Args:
      strides: nominal stride of each layer or unit of a backbone, in order, stem included.
      output_stride: wanted ratio of input to feature size; None keeps every stride.
      dilation_start: "after" as said above (TensorFlow, torchvision); "at" spaces the taps of
        the layer that lost its stride, too (Caffe's DeepLab and the PyTorch ports after it).

    Returns:
      One (stride, rate) pair a layer.

    Raises:
      ValueError: if the strides never multiply to exactly `output_stride`.
    """
    plan, current, rate = [], 1, 1
    for stride in strides:
        if output_stride is not None and current * stride > output_stride:
            before, rate = rate, rate * stride
            plan.append((1, rate if dilation_start == "at" else before))
        else:
            plan.append((stride, rate))
            current *= stride
    if output_stride is not None and current != output_stride:
        raise ValueError(
            f"output_stride {output_stride} cannot be reached: this backbone's strides give "
            f"{sorted({_product(strides[:i]) for i in range(1, len(strides) + 1)})}"
        )
    return plan


def _product(values: Sequence[int]) -> int:
    return functools.reduce(lambda a, b: a * b, values, 1)


def default_atrous_rates(
    output_stride: int, rates: Sequence[int] = (6, 12, 18), at: int = 16
) -> tuple[int, ...]:
    """Rates, given for output stride `at`, that keep their reach in pixels at another one.

    By default the ASPP's: 32 → 3,6,9; 16 → 6,12,18; 8 → 12,24,36 ([V3] Sec. 3.3).
    """
    return tuple(max(1, rate * at // output_stride) for rate in rates)


def same_padding(
    size: tuple[int, int], kernel: tuple[int, int], stride: int = 1, rate: Rate = 1
) -> Padding:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel of padding at the end.

    At stride 2 the place of the padding depends on whether the size is even, so features of
    even-sized images are shifted by half a pixel against `fixed_padding`.
    """
    pads = []
    for n, k, r in zip(size, kernel, pair(rate)):
        k = k + (k - 1) * (r - 1)
        total = max((-(-n // stride) - 1) * stride + k - n, 0)
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


def fixed_padding(kernel: tuple[int, int], rate: Rate = 1) -> Padding:
    """Padding that depends on the kernel alone: (k_eff - 1) // 2 before, the rest after.

    What Xception and ResNet of the official code do at stride 2 (and PyTorch everywhere, for
    odd kernels): the sampling grid starts at pixel 0 at any size.
    """
    totals = [(k - 1) * r for k, r in zip(kernel, pair(rate))]
    return tuple((t // 2, t - t // 2) for t in totals)


def output_size(size: int, kernel: int, rate: int, padding: tuple[int, int]) -> int:
    """Outputs of a convolution of stride 1, along one axis."""
    return size + sum(padding) - (kernel - 1) * rate


def pair(rate: Rate) -> tuple[int, int]:
    """A rate as (height, width)."""
    return (rate, rate) if isinstance(rate, int) else tuple(rate)


def scaled_size(size: tuple[int, int], scale: float, align_corners: bool) -> tuple[int, int]:
    """(height, width) of an image resized by `scale`: int((n - 1) * scale + 1) with aligned corners
    as the official code has it, which keeps 32 k + 1 on the grid, else int(n * scale)."""
    if scale == 1:
        return tuple(size)  # which may be a symbol, in an export
    offset = 1 if align_corners else 0
    return tuple(int((n - offset) * scale + offset) for n in size)
