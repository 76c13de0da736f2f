"""Images and masks on disk: reading them without guessing, whoever made them."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from deeplab_jax.errors import DataError, UnreadableError

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
MASK_FORMATS = ("PNG", "TIFF", "BMP")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
# Pillow widens grey of 2 and 4 bits to a byte; ids must come back as they were stored.
NARROW_GREY = {"L;2": 85, "L;4": 17}
COLORED = ("RGB", "RGBA")
_TURNED = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PIXELS = 178_956_970  # of an image; configs/common.py has the same, where Pillow refuses
_LIMIT = "DEEPLAB_JAX_MAX_PIXELS"  # in the environment, which the processes of the data inherit


def limit_pixels(most: int) -> None:
    """Sets how many pixels an image may have, for this process and those it starts.

    Pillow's own limit, which warns at half as many, is off from then on in all of the process.
    """
    os.environ[_LIMIT] = str(most)
    Image.MAX_IMAGE_PIXELS = None


# What Pillow has to say of odd metadata, which many cameras write, names no file. What matters of a
# file it gives us anyway, or raises.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

if _LIMIT in os.environ:  # of the process that started this one
    limit_pixels(int(os.environ[_LIMIT]))


def most_pixels() -> int:
    """How many pixels an image may have here."""
    return int(os.environ.get(_LIMIT, MAX_PIXELS))


def read_image(path: str | Path, encoded: bytes | None = None) -> np.ndarray:
    """Reads an image as RGB, [H, W, 3] uint8, turned upright by its EXIF orientation.

    Args:
      path: the file, or what to call the image in messages where `encoded` is one's content.
      encoded: a file's content that lies elsewhere, in a database.

    Raises:
      DataError: if the file is missing, truncated, no image, or has more pixels than
        `limit_pixels` allows.
    """
    with _opened(path, IMAGE_FORMATS, "image", encoded) as image:
        return upright_rgb(image, path)


def upright_rgb(image: Image.Image, path) -> np.ndarray:
    """[H, W, 3] uint8 of an image, turned upright; `path` is for messages.

    Raises:
      DataError: for more than 8 bits a channel.
    """
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        raise DataError(
            f"{path}: a {image.mode} image (more than 8 bits a channel); convert it to 8-bit RGB "
            "or grey first, so that you choose how its range is mapped"
        )
    if "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for before dropping transparency
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_mask(
    path: str | Path, encoded: bytes | None = None, in_colors: bool = False
) -> np.ndarray:
    """Reads a mask's ids as stored, [H, W] uint8 or int32: palette indices, grey or 16-bit values.

    Nothing is converted: a palette read "as grey" gives ids that no one annotated. It is turned
    upright by its own EXIF orientation, as images are.

    Args:
      path, encoded: as of `read_image`.
      in_colors: give a mask in RGB colours as [H, W, 3] uint8 instead of refusing it.

    Raises:
      DataError: as `read_image`; also for colour masks, whose colours need a colour map.
    """
    opened = _opened(path, MASK_FORMATS, "mask", encoded)
    with opened as mask:
        mask = _upright(mask)
        if mask.mode == "1":
            return np.asarray(mask).astype(np.uint8)
        if mask.mode in ("P", "L"):
            return np.asarray(mask) // np.uint8(NARROW_GREY.get(opened.stored_mode, 1))
        if mask.mode.startswith("I"):  # "I;16", "I": 16 bits and more
            return np.asarray(mask).astype(np.int32)
        deep = ";16" in str(opened.stored_mode)  # which Pillow cuts to 8 bits a channel
        if in_colors and mask.mode in COLORED and not deep:
            return np.asarray(mask.convert("RGB"))
        raise DataError(
            f"{path}: a mask in {opened.stored_mode} colours; masks hold one class id a pixel "
            "(8-bit grey, 16-bit grey or palette PNG). Write the ids; or say in a classes.json "
            "beside images/ and masks/ which colour is what (--mode=check_data proposes one): "
            '{"classes": [{"name": "road", "color": [128, 64, 128]}, ...]}'
        )


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says, itself if that is upright already.

    Pillow's `exif_transpose` would also write the rest of the EXIF anew, and fail where it cannot.
    """
    try:
        turned = _TURNED.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # what damaged EXIF raises has no end; it says nothing then
        return image
    return image if turned is None else image.transpose(turned)


class _opened:
    """Opens and fully decodes an image, turning every way that can fail into a DataError.

    What decoders raise on damaged files has no end (struct.error, TypeError, ...), nor what Pillow
    raises later of what they gave.
    """

    def __init__(self, path, formats, what, encoded=None):
        self.path, self.formats, self.what = Path(path), formats, what
        self.encoded = encoded

    def __enter__(self) -> Image.Image:
        self.image = None
        try:
            return self._decoded()
        except BaseException:
            if self.image is not None:
                self.image.close()
            raise

    def _decoded(self) -> Image.Image:
        try:
            file = self.path if self.encoded is None else io.BytesIO(self.encoded)
            self.image = Image.open(file, formats=self.formats)
            self._check_size()
            arguments = self.image.tile[0][3] if self.image.tile else None
            self.stored_mode = arguments[0] if isinstance(arguments, tuple) else arguments
            self.image.load()
        except FileNotFoundError as error:
            raise DataError(f"{self.path}: no such {self.what}") from error
        except IsADirectoryError as error:
            raise DataError(f"{self.path}: a folder where an {self.what} was expected") from error
        except Image.DecompressionBombError as error:
            raise DataError(
                f"{self.path}: too large to open safely ({error}); make it smaller, or raise "
                "Pillow's limit by files.limit_pixels(N) if you trust it"
            ) from error
        except UnidentifiedImageError as error:
            size = self.path.stat().st_size if self.encoded is None else len(self.encoded)
            jpeg = "; JPEG compression changes ids" if self.what == "mask" else ""
            raise UnreadableError(
                f"{self.path}: not a readable {self.what} ({', '.join(self.formats)} are read"
                f"{jpeg}; the file has {size} bytes); replace or remove it"
            ) from error
        except (DataError, MemoryError):
            raise
        except Exception as error:
            raise self._damaged(error) from error
        return self.image

    def _damaged(self, error: Exception) -> UnreadableError:
        return UnreadableError(
            f"{self.path}: damaged or truncated {self.what} ({error}); replace or remove it"
        )

    def _check_size(self) -> None:
        """By its header alone: a file of kilobytes may unfold to gigabytes."""
        width, height = self.image.size
        most = most_pixels()
        if width * height > most:
            raise DataError(
                f"{self.path}: too large to open safely: {width}x{height} px are "
                f"{width * height}, more than data.max_pixels={most}; make it smaller, or give "
                f"--config.data.max_pixels={width * height} if you trust it"
            )

    def __exit__(self, kind, error, trace):
        self.image.close()
        if isinstance(error, Exception) and not isinstance(error, (DataError, MemoryError)):
            raise self._damaged(error) from error
