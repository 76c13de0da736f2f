"""Geometry of images and labels in numpy, as the official code does it (align_corners everywhere).

Images are [H, W, C] with values 0..255, labels [H, W] integer ids. Labels only ever move: no
transform makes an id that was not there, except `ignore_label` where nothing is known.
"""

import dataclasses
from collections.abc import Mapping

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
        """{"image", "label", ["label_NAME"], ["links"]} → {"image" float32, "label" int32, ...}.

        Only the crop's window of the scaled image is computed. "links", if there, marks objects
        that only a distant cue explains (see `void_orphans`) and is used up here.
        """
        image = example["image"]
        scale = np.float32(self._draw_scale(rng))
        size = tuple(max(1, int(n * scale)) for n in image.shape[:2])
        top, left = (int(rng.integers(0, max(n - c, 0) + 1)) for n, c in zip(size, self.crop_size))
        mirrored = self.flip and rng.random() < 0.5
        window = (slice(top, top + self.crop_size[0]), slice(left, left + self.crop_size[1]))

        def label_map(values, fill):
            values = resize_nearest(values, size, window)
            values = pad_to(values, self.crop_size, fill)
            return values[:, ::-1] if mirrored else values

        out = {
            key: label_map(value, self.ignore_label).astype(np.int32)
            for key, value in example.items()
            if key.startswith("label")
        }
        if "links" in example:
            links = label_map(example["links"], 0)
            orphans = orphaned(example["links"], links, float(scale))
            out["label"] = np.where(np.isin(links, orphans), self.ignore_label, out["label"])
        pixels = pad_to(resize_bilinear(image, size, window), self.crop_size, self.pad_value)
        out["image"] = np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
        return out

    def _draw_scale(self, rng: np.random.Generator) -> float:
        low, high = self.min_scale_factor, self.max_scale_factor
        if low == high:
            return low
        if not self.scale_factor_step_size:
            return rng.uniform(low, high)
        return rng.choice(scale_factors(low, high, self.scale_factor_step_size))


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


def pad_to(array: np.ndarray, size: tuple[int, int], value) -> np.ndarray:
    """Pads [h, w, ...] at the bottom and right up to `size`; larger arrays stay as they are."""
    height, width = (max(n, s) for n, s in zip(array.shape[:2], size))
    if (height, width) == array.shape[:2]:
        return array
    dtype = (
        np.result_type(array.dtype, np.min_scalar_type(value)) if array.ndim == 2 else np.float32
    )
    out = np.empty((height, width, *array.shape[2:]), dtype)
    out[...] = value
    out[: array.shape[0], : array.shape[1]] = array
    return out


WHOLE = (slice(None), slice(None))


def resize_bilinear(image: np.ndarray, size: tuple[int, int], window=WHOLE) -> np.ndarray:
    """Bilinear, align_corners, no smoothing; [h, w, C] → the `window` of [*size, C], float32."""
    if size == image.shape[:2]:
        return image[window].astype(np.float32)
    top, bottom, y = _neighbours(image.shape[0], size[0], window[0])
    left, right, x = _neighbours(image.shape[1], size[1], window[1])
    # Columns that the window never reads are dropped before anything becomes float.
    first, last = left.min(), right.max() + 1
    columns = image[:, first:last]
    rows = columns[top].astype(np.float32)
    rows += (columns[bottom] - rows) * y[:, None, None]
    out = rows[:, left - first]
    out += (rows[:, right - first] - out) * x[None, :, None]
    return out


def resize_nearest(label: np.ndarray, size: tuple[int, int], window=WHOLE) -> np.ndarray:
    """Nearest, align_corners; [h, w] → the `window` of `size`, same dtype and ids."""
    if size == label.shape:
        return label[window]
    y, x = (
        np.floor(_positions(n, s, w) + np.float32(0.5)).astype(np.int64)
        for n, s, w in zip(label.shape, size, window)
    )
    return label[y[:, None], x[None, :]]


def _positions(old: int, new: int, window: slice) -> np.ndarray:
    """Where the new samples of `window` lie on the old grid, float32 as in the reference."""
    step = np.float32((old - 1) / (new - 1)) if new > 1 else np.float32(0)
    return np.minimum(np.arange(new, dtype=np.float32)[window] * step, np.float32(old - 1))


def _neighbours(old: int, new: int, window: slice):
    position = _positions(old, new, window)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), position - low.astype(np.float32)
