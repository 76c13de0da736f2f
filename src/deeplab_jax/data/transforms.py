"""Geometry of images and labels in numpy, as the official code does it (align_corners everywhere).

Images are [H, W, C] with values 0..255, labels [H, W] integer ids. Labels only ever move: no
transform makes an id that was not there, except `ignore_label` where nothing is known.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# name: (mean, std) of RGB in 0..255; a network sees (x - mean) / std, as RGB but for "..._bgr".
NORMALIZATIONS = {
    "zero_mean": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),  # TF's DeepLab: x * 2/255 - 1
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # PyTorch's
    "imagenet_mean": ((123.15, 115.90, 103.06), (1, 1, 1)),  # TF-slim's 7x7 ResNets
    "caffe_bgr": ((122.675, 116.669, 104.008), (1, 1, 1)),  # Caffe's DeepLab; seen as BGR
}


def normalization(name: str, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std), each [channels] float32; channels past RGB (depth) take the mid-grey ones."""
    if name not in NORMALIZATIONS:
        raise ValueError(f"normalization {name!r} is not one of {', '.join(NORMALIZATIONS)}")
    extra = (127.5,) * max(channels - 3, 0)
    return tuple(np.array((x + extra)[:channels], np.float32) for x in NORMALIZATIONS[name])


@dataclasses.dataclass(frozen=True)
class ResizeToRange:
    """The reference's `resize_to_range`, before all else: brings every image to about one size.

    Attributes:
      min_size: what the shorter side becomes,
      max_size: unless the longer one would pass this, then that becomes this; or None.
      factor: both sides are rounded up to a multiple of it plus 1; or None.
    """

    min_size: int
    max_size: int | None = None
    factor: int | None = None

    def __call__(self, example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """An example with its "image", then float32, and every "label" resized."""
        size = self.size(example["image"].shape[:2])
        out = dict(example)
        for key, value in example.items():
            if key == "image":
                out[key] = resize_bilinear(value, size)
            elif key.startswith(("label", "links")):
                out[key] = resize_nearest(value, size)
        return out

    def size(self, old: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an image of size `old` gets."""
        new = _scaled(old, np.float32(self.min_size) / np.float32(min(old)))
        if self.max_size is not None:
            limit = self.max_size
            if self.factor:
                limit -= (limit - 1) % self.factor
            if max(new) > limit:
                new = _scaled(old, np.float32(limit) / np.float32(max(old)))
        if self.factor:
            new = tuple(n + -(n - 1) % self.factor for n in new)
        return new


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """`size` times `scale`, float32 and rounded down as in the reference; at least 1."""
    return tuple(max(1, int(np.float32(n) * np.float32(scale))) for n in size)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random scale, pad, random crop, flip: the reference's training augmentation, in its order.

    Attributes:
      crop_size: (height, width) that every example ends with.
      min_scale_factor, max_scale_factor: range of the random scale.
      scale_factor_step_size: scales are drawn from min, min + step, ..., max; 0 draws uniformly.
      flip: mirror left-right half of the time.
      pad_value: [C] image value outside the image, the mean pixel.
      ignore_label: label value outside the image.
    """

    crop_size: tuple[int, int]
    min_scale_factor: float
    max_scale_factor: float
    scale_factor_step_size: float
    flip: bool
    pad_value: tuple[float, ...]
    ignore_label: int = 255

    def __call__(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """{"image", "label", ["label_NAME"], ["links"]} → {"image" float32, "label" int32, ...}."""
        return {key: value[0] for key, value in self.batch([self.place(example, rng)]).items()}

    def place(self, example: Mapping[str, np.ndarray], rng: np.random.Generator) -> "Placed":
        """Draws what is to become of an example, and computes nothing yet."""
        scale = float(np.float32(self._draw_scale(rng)))
        size = _scaled(example["image"].shape[:2], scale)
        corner = (rng.integers(0, max(n - c, 0) + 1) for n, c in zip(size, self.crop_size))
        top, left = map(int, corner)
        return Placed(example, scale, size, top, left, bool(self.flip and rng.random() < 0.5))

    def batch(self, placed: Sequence["Placed"]) -> dict[str, np.ndarray]:
        """{"image" [B, h, w, C] float32, "label" [B, h, w] int32, ...}: crops of placed examples.

        Only the crop's window of a scaled image is computed, straight into the batch. "links", if
        there, marks objects that only a distant cue explains (see `orphaned`) and is used up here.
        """
        first = placed[0].example
        shape = (len(placed), *self.crop_size)
        out = {"image": np.empty((*shape, first["image"].shape[-1]), np.float32)}
        out |= {key: np.empty(shape, np.int32) for key in first if key.startswith("label")}
        for i, one in enumerate(placed):
            for key, array in out.items():
                self._render(one, key, array[i])
            if "links" in one.example:
                links = np.empty(self.crop_size, np.int32)
                self._render(one, "links", links)
                orphans = orphaned(one.example["links"], links, one.scale)
                out["label"][i][np.isin(links, orphans)] = self.ignore_label
        return out

    def windows(self, placed: Sequence["Placed"]) -> dict[str, np.ndarray]:
        """What `ops.crops` makes of them the same batch: no pixel is computed here.

        "image" [B, H, W, C] and labels [B, H, W] are the parts of the examples that the crops
        show, of their dtype, H and W multiples of `WINDOW_GRID` so that there are few sizes.
        "rows" [B, h] and "columns" [B, w] float32 say where in it each row and column of a crop
        lies, "nearest_rows" and "nearest_columns" int32 where in the label; -1: outside.

        Raises:
          ValueError: for examples with "links", which need the finished crop.
        """
        if "links" in placed[0].example:
            raise ValueError("examples with links are augmented by `batch`")
        out = {}
        for axis, length in zip(AXES, self.crop_size):
            out[axis] = np.full((len(placed), length), -1, np.float32)
            out[f"nearest_{axis}"] = np.full((len(placed), length), -1, np.int32)
        parts = []
        for i, one in enumerate(placed):
            part, old = [], one.example["image"].shape
            places = one.window(self.crop_size), one.inside(self.crop_size)
            for axis, n, new, index, inside in zip(AXES, old, one.size, *places):
                low, high, _ = _neighbours(n, new, index)
                first = low.min()
                part.append(slice(first, high.max() + 1))
                out[axis][i, inside] = _positions(n, new, index) - np.float32(first)
                out[f"nearest_{axis}"][i, inside] = _nearest(n, new, index) - first
            parts.append(tuple(part))
        for key in placed[0].example:
            if key.startswith(("image", "label")):
                out[key] = _stacked([one.example[key][part] for one, part in zip(placed, parts)])
        return out

    def _render(self, placed: "Placed", key: str, out: np.ndarray) -> None:
        """Fills `out`, a crop, from one of the example's arrays."""
        resize, outside = resize_nearest, self.ignore_label
        if key == "image":
            resize, outside = resize_bilinear, self.pad_value
        elif key == "links":
            outside = 0
        inside = placed.inside(self.crop_size)
        fill_outside(out, *inside, outside)
        resize(placed.example[key], placed.size, placed.window(self.crop_size), out[inside])

    def _draw_scale(self, rng: np.random.Generator) -> float:
        low, high = self.min_scale_factor, self.max_scale_factor
        if low == high:
            return low
        if not self.scale_factor_step_size:
            return rng.uniform(low, high)
        return rng.choice(scale_factors(low, high, self.scale_factor_step_size))


class Placed(NamedTuple):
    """An example, and the crop of it that was drawn.

    Attributes:
      example: {"image" [H, W, C] uint8, "label" [H, W], ...}.
      scale: factor of both sides.
      size: (height, width) of the scaled image.
      top, left: where the crop begins in it.
      mirrored: whether the crop, padding and all, is turned left-right.
    """

    example: Mapping[str, np.ndarray]
    scale: float
    size: tuple[int, int]
    top: int
    left: int
    mirrored: bool

    def window(self, crop_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(rows, columns) of the scaled image that a crop shows, in its order."""
        rows, columns = (
            np.arange(start, min(start + crop, size))
            for start, crop, size in zip((self.top, self.left), crop_size, self.size)
        )
        return rows, columns[::-1] if self.mirrored else columns

    def inside(self, crop_size: tuple[int, int]) -> tuple[slice, slice]:
        """(rows, columns) of the crop where they go; the rest of it is padding."""
        height, width = map(len, self.window(crop_size))
        first = crop_size[1] - width if self.mirrored else 0
        return slice(0, height), slice(first, first + width)


AXES = ("rows", "columns")
WINDOW_GRID = 64


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays [h, w, ...] as one [B, H, W, ...], zeros below and beside them."""
    size = [-(-max(a.shape[axis] for a in arrays) // WINDOW_GRID) * WINDOW_GRID for axis in (0, 1)]
    out = np.zeros((len(arrays), *size, *arrays[0].shape[2:]), np.result_type(*arrays))
    for whole, array in zip(out, arrays):
        whole[: array.shape[0], : array.shape[1]] = array
    return out


def scale_factors(low: float, high: float, step: float) -> np.ndarray:
    """The reference's discrete scales: low, low + step, ..., high."""
    return np.linspace(low, high, int((high - low) / step + 1), dtype=np.float32)


def orphaned(before: np.ndarray, after: np.ndarray, scale: float) -> list[int]:
    """Odd ids k of `links` whose cue, the pixels k + 1, was (partly) cut off by the crop."""
    lost = []
    for k in range(1, int(before.max(initial=0)), 2):
        expected = np.count_nonzero(before == k + 1) * scale**2
        if np.count_nonzero(after == k + 1) < 0.8 * expected:
            lost.append(k)
    return lost


def pad_into(out: np.ndarray, array: np.ndarray, value) -> None:
    """Writes [h, w, ...] to the upper left of `out` [H, W, ...], and `value` below and beside."""
    inside = tuple(slice(0, n) for n in array.shape[:2])
    fill_outside(out, *inside, value)
    out[inside] = array


def fill_outside(out: np.ndarray, rows: slice, columns: slice, value) -> None:
    """Sets [H, W, ...] to `value`, a scalar or [C], below `rows` and beside `columns`."""
    line = np.empty(out.shape[1:], out.dtype)
    line[...] = value  # whole lines: NumPy copies three numbers at a time much slower
    out[rows.stop :] = line
    out[rows, : columns.start] = line[: columns.start]
    out[rows, columns.stop :] = line[columns.stop :]


WHOLE = (slice(None), slice(None))
BLOCK = 32  # rows of a resized image at a time: what lies between the steps stays in the cache


def resize_bilinear(
    image: np.ndarray, size: tuple[int, int], window=WHOLE, out: np.ndarray | None = None
) -> np.ndarray:
    """Bilinear, align_corners, no smoothing; [h, w, C] → the `window` of [*size, C], float32.

    Args:
      image: [h, w, C].
      size: of the whole resized image.
      window: (rows, columns) of it to compute; slices, or indices in any order.
      out: where to put them, float32; None makes an array.
    """
    top, bottom, y = _neighbours(image.shape[0], size[0], window[0])
    left, right, x = _neighbours(image.shape[1], size[1], window[1])
    channels = image.shape[2]
    if out is None:
        out = np.empty((len(y), len(x), channels), np.float32)
    if size == image.shape[:2]:
        out[...] = image[window[0]][:, window[1]]
        return out
    # Columns that the window never reads are dropped before anything becomes float.
    first, last = left.min(), right.max() + 1
    image = image[:, first:last]
    # Pixels lie channel by channel in a line: NumPy gathers single numbers faster than triples.
    channel = np.arange(channels)
    left, right = (((n - first)[:, None] * channels + channel).ravel() for n in (left, right))
    x, y = np.repeat(x, channels), y[:, None]
    for start in range(0, len(y), BLOCK):
        block = slice(start, start + BLOCK)
        rows, below = (
            image[n[block]].reshape(-1, image.shape[1] * channels).astype(np.float32)
            for n in (top, bottom)
        )
        below -= rows
        below *= y[block]
        rows += below
        pixels, beside = (rows.take(n, axis=1, mode="clip") for n in (left, right))
        beside -= pixels
        beside *= x
        pixels += beside
        out[block] = pixels.reshape(-1, *out.shape[1:])
    return out


def resize_nearest(
    label: np.ndarray, size: tuple[int, int], window=WHOLE, out: np.ndarray | None = None
) -> np.ndarray:
    """Nearest, align_corners; [h, w] → the `window` of `size`, same ids; arguments as above.

    Without `out`, the dtype is that of `label`.
    """
    y, x = (_nearest(n, s, w) for n, s, w in zip(label.shape, size, window))
    moved = label.take(y, axis=0).take(x, axis=1)
    if out is None:
        return moved
    out[...] = moved
    return out


def _positions(old: int, new: int, window: slice) -> np.ndarray:
    """Where the new samples of `window` lie on the old grid, float32 as in the reference."""
    step = np.float32((old - 1) / (new - 1)) if new > 1 else np.float32(0)
    return np.minimum(np.arange(new, dtype=np.float32)[window] * step, np.float32(old - 1))


def _nearest(old: int, new: int, window) -> np.ndarray:
    return np.floor(_positions(old, new, window) + np.float32(0.5)).astype(np.int64)


def _neighbours(old: int, new: int, window: slice):
    position = _positions(old, new, window)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), position - low.astype(np.float32)
