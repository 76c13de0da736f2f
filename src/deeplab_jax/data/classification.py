"""Images with a class each: a label is a label map of one pixel, [1, 1].

Random and central crops as ImageNet's classifiers have them, and images in folders by class.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.data import files, image_files
from deeplab_jax.data.transforms import resize_bilinear
from deeplab_jax.errors import DataError, did_you_mean

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A window of random area and shape, resized; mirrored; its colours jittered.

    The augmentation of GoogLeNet (arXiv 1409.4842 Sec. 6).

    Attributes:
      crop_size: (height, width) that every example ends with.
      min_crop_area: the least share of the image's area; 1 is all of it.
      max_aspect_ratio: of width and height (or height and width), at most.
      flip: mirror left-right half of the time.
      color_jitter: brightness, contrast and saturation are multiplied by up to 1 ± this.
    """

    crop_size: tuple[int, int]
    min_crop_area: float
    max_aspect_ratio: float
    flip: bool
    color_jitter: float

    def __call__(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """{"image" [H, W, 3], "label" [1, 1]} → {"image" [h, w, 3] float32, "label" int32}."""
        image = example["image"]
        window = self._window(image.shape[:2], rng)
        pixels = resize_bilinear(image[window], self.crop_size)
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self.color_jitter:
            pixels = jittered(pixels, rng.uniform(-1, 1, 3) * self.color_jitter)
        return {
            "image": np.ascontiguousarray(pixels),
            "label": example["label"].astype(np.int32),
        }

    def _window(self, size: tuple[int, int], rng) -> tuple[slice, slice]:
        height, width = size
        reach = np.log(self.max_aspect_ratio)
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(self.min_crop_area, 1)
            ratio = np.exp(rng.uniform(-reach, reach))
            h, w = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                return slice(top, top + h), slice(left, left + w)
        return slice(0, height), slice(0, width)


def jittered(image: np.ndarray, by: Sequence[float]) -> np.ndarray:
    """[H, W, 3] float32 in 0..255 with brightness, contrast, saturation times 1 + `by`."""
    brightness, contrast, saturation = np.float32(1) + np.asarray(by, np.float32)
    rgb = image * brightness
    mean = (rgb @ GREY).mean()
    rgb = mean + contrast * (rgb - mean)
    grey = (rgb @ GREY)[..., None]
    return np.clip(grey + saturation * (rgb - grey), 0, 255)


def central_crop(image: np.ndarray, size: tuple[int, int], fraction: float) -> np.ndarray:
    """The middle of [H, W, C], `fraction` of its shorter side, resized to `size`: float32.

    The window has the shape of `size`: nothing is distorted.
    """
    scale = fraction * min(n / s for n, s in zip(image.shape[:2], size))
    sides = [max(1, round(s * scale)) for s in size]
    starts = [(n - side) // 2 for n, side in zip(image.shape[:2], sides)]
    window = tuple(slice(start, start + side) for start, side in zip(starts, sides))
    return resize_bilinear(image[window], size)


@dataclasses.dataclass(frozen=True)
class CentralCrops:
    """A source whose images are cropped as evaluation wants them."""

    source: Any
    size: tuple[int, int]
    fraction: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        example = self.source[index]
        return example | {"image": central_crop(example["image"], self.size, self.fraction)}


def class_folders(root: str | Path, split: str = "train") -> tuple[str, ...]:
    """Names of the folders in ROOT/SPLIT, sorted; hidden ones are none.

    Raises:
      DataError: if there is no such folder.
    """
    folder = Path(root).expanduser() / split
    if not root or not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; data.root holds SPLIT/CLASS/*.jpg, and the folders of "
            "its train are the classes"
        )
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))


class ImageFolder:
    """Images at ROOT/SPLIT/CLASS/*; classes are the folders of ROOT/train, in order of name.

    Raises:
      DataError: for a missing or empty folder, or a class that ROOT/train lacks.
    """

    def __init__(self, root: str | Path, split: str):
        self.root, self.split = Path(root).expanduser(), split
        self.names = class_folders(root)
        ids = {name: i for i, name in enumerate(self.names)}
        self.examples = []
        for folder in (self.root / split / name for name in class_folders(root, split)):
            if folder.name not in ids:
                raise DataError(
                    f"{folder}: no class of {self.root / 'train'}"
                    + did_you_mean(folder.name, self.names)
                )
            paths = sorted(
                p
                for p in folder.iterdir()
                if p.suffix.lower() in image_files.IMAGE_SUFFIXES and p.name[0] != "."
            )
            if not paths:
                raise DataError(f"{folder}: holds no images; remove the folder, or fill it")
            self.examples += [(path, ids[folder.name]) for path in paths]
        if not self.examples:
            raise DataError(f"{self.root / split}: holds no images; expected CLASS/*.jpg")

    def __len__(self) -> int:
        return len(self.examples)

    def fingerprint(self) -> str:
        """Classes, names and sizes of the files."""
        paths, ids = zip(*self.examples)
        return f"{self.names} {ids} {files.named_sizes(paths)}"

    def __getitem__(self, index: int) -> dict:
        """{"image" [H, W, 3] uint8, "label" [1, 1] int32, "name"}."""
        path, label = self.examples[int(index)]
        image = image_files.read_image(path)
        return {"image": image, "label": np.array([[label]], np.int32), "name": path.stem}
