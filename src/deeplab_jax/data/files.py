"""Images and masks on disk: reading them without guessing, and pairs of them as a source."""

import dataclasses
import errno
import hashlib
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from deeplab_jax.data import colors
from deeplab_jax.data.labels import IGNORE_LABEL, RGB
from deeplab_jax.errors import DataError, UnreadableError, did_you_mean, first_few
from deeplab_jax.output import sha256

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


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Random-access source of image and mask files.

    Attributes:
      images, masks: paths, in the same order.
      num_classes: ids from 0 up to this are classes.
      ignore_label: the id that counts for nothing.
      label_map: [256], the id of each id that a mask has stored, -1 where there is none; None:
        they are the same.
      colors: {RGB: label} of masks in colours; None: there are none.
      others_void: colours that are not among these are void.
    """

    images: Sequence[Path]
    masks: Sequence[Path]
    num_classes: int
    ignore_label: int = IGNORE_LABEL
    label_map: np.ndarray | None = None
    colors: Mapping[RGB, int] | None = None
    others_void: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        """{"image" [H, W, 3] uint8, "label" [H, W] integer, "name"}; checks sizes and ids.

        Raises:
          DataError: naming the file and what is wrong with it.
        """
        image, mask = read_image(self.images[index]), self.label(index)
        check_sizes(image, mask, self.images[index], self.masks[index])
        return {"image": image, "label": mask, "name": self.images[index].stem}

    def fingerprint(self) -> str:
        """Names and sizes of the files, and what ids become."""
        label_map = None if self.label_map is None else self.label_map.tolist()
        meaning = f"{label_map} {sorted(self.colors.items())}" if self.colors else f"{label_map}"
        return f"{named_sizes([*self.images, *self.masks])} {meaning}"

    def label(self, index: int) -> np.ndarray:
        """The mask alone, [H, W] integer; checks its ids.

        Raises:
          DataError: as above.
        """
        path = self.masks[index]
        mask = read_mask(path, in_colors=bool(self.colors))
        if mask.ndim == 3:
            others = self.ignore_label if self.others_void else None
            return colors.labelled(mask, self.colors, others, path)
        return labelled(mask, self.num_classes, self.ignore_label, self.label_map, path)


def check_sizes(image: np.ndarray, mask: np.ndarray, image_path, mask_path) -> None:
    """Raises DataError unless image [H, W, 3] and mask [H, W] are of one size."""
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"{mask_path}: mask of {shown_size(mask.shape)} for an image of "
            f"{shown_size(image.shape)} ({image_path}); they must be the same size"
            + _turned(image, mask)
        )


def labelled(
    mask: np.ndarray, num_classes: int, ignore_label: int, label_map: np.ndarray | None, path
) -> np.ndarray:
    """The label map [H, W] of a stored mask: mapped, and its ids checked.

    Raises:
      DataError: for ids that are no class, not void, or not in the map.
    """
    if label_map is not None:
        mask = mapped(mask, label_map, path)
    check_ids(mask, num_classes, ignore_label, path)
    return mask


def fingerprint(source) -> str:
    """16 hexadecimal digits that differ where a source's examples, or their order, do.

    Of files it knows names and sizes, not contents. A source without a `fingerprint` method is
    known by its attributes if it is a dataclass, else by its length.
    """
    if hasattr(source, "fingerprint"):
        told = source.fingerprint()
    else:
        told = repr(source) if dataclasses.is_dataclass(source) else str(len(source))
    return hashlib.sha256(f"{type(source).__name__} {told}".encode()).hexdigest()[:16]


def shared(one, other, by_content: bool = False) -> list[Path]:
    """The image files of one source that are in another, too; of sources without files none.

    Args:
      by_content: also files elsewhere with the same bytes in them.
    """
    images, others = getattr(one, "images", ()), getattr(other, "images", ())
    there = {path.resolve() for path in others}
    if not by_content:
        return [path for path in images if path.resolve() in there]
    sizes = {path.stat().st_size for path in others}
    alike = [path for path in images if path.stat().st_size in sizes]
    wanted = {path.stat().st_size for path in alike}
    contents = {sha256(path) for path in others if path.stat().st_size in wanted}
    return [path for path in alike if sha256(path) in contents]


def named_sizes(paths: Sequence[Path]) -> list[tuple[str, int]]:
    """(name, bytes) of files, without their folders: a dataset may have moved."""
    return [(path.name, path.stat().st_size) for path in paths]


def mapped(mask: np.ndarray, label_map: np.ndarray, path) -> np.ndarray:
    """`mask` with the ids that `label_map` ([256], -1: none) has for those it stores.

    Raises:
      DataError: for ids that the map lacks, naming them.
    """
    inside = (mask >= 0) & (mask < len(label_map))
    labels = np.where(inside, label_map[np.where(inside, mask, 0)], -1)
    if (labels < 0).any():
        raise DataError(
            f"{path}: ids {_ids(np.unique(mask[labels < 0]))} are not in data.label_map, nor in "
            'classes.json; add them (to data.ignore_label, or "ignore", if they are void)'
        )
    return labels.astype(np.uint8)


def check_ids(mask: np.ndarray, num_classes: int, ignore_label: int, path) -> None:
    """Raises DataError if `mask` holds an id that is neither a class nor `ignore_label`."""
    outside = (mask != ignore_label) & ((mask < 0) | (mask >= num_classes))
    if not outside.any():
        return
    present, wrong = np.unique(mask), np.unique(mask[outside])
    hint = "raise model.num_classes, or map these ids to classes"
    if len(wrong) > 30:
        hint = "so many ids suggest a grey picture, a JPEG or smoothed edges rather than a mask"
    elif 255 in wrong:
        hint = "255 usually marks void: set data.ignore_label=255"
    raise DataError(
        f"{path}: ids {_ids(wrong)} are outside the {num_classes} classes 0..{num_classes - 1} "
        f"(ignore_label {ignore_label}; all ids in it: {_ids(present)}); {hint}"
    )


def _ids(ids: np.ndarray) -> str:
    shown = ", ".join(str(int(i)) for i in ids[:12])
    return shown + (f", ... ({len(ids)} ids)" if len(ids) > 12 else "")


def _turned(image: np.ndarray, mask: np.ndarray) -> str:
    if image.shape[:2] != mask.shape[::-1]:
        return ""
    return " (the image was turned upright by its EXIF orientation; turn the mask likewise)"


def shown_size(shape: Sequence[int]) -> str:
    """(height, width, ...) as people write it: WIDTHxHEIGHT."""
    return f"{shape[1]}x{shape[0]}"


def read_list(lists: Path, split: str) -> list[str]:
    """The names in LISTS/SPLIT.txt.

    Raises:
      DataError: if there is no such list, it is empty, or a name leads out of the dataset.
    """
    path = lists / f"{split}.txt"
    if not is_file(path):
        known = sorted(p.stem for p in lists.glob("*.txt") if p.stem != "classes")
        raise DataError(
            f"{path}: no such split list; there are {', '.join(known) or 'none'}"
            + did_you_mean(split, known)
        )
    names = read_lines(path)
    if not names:
        raise DataError(f"{path}: the list is empty")
    check_inside(path, names)
    return names


def check_inside(path: Path, names: Sequence[str]) -> None:
    """Raises DataError if a name of those in the file `path` leads out of the dataset.

    Links that lie in the dataset are followed: whoever put it there made them.
    """
    outside = [name for name in names if leads_out(name)]
    if outside:
        raise DataError(f"{path}: names must stay inside the dataset:\n{first_few(outside)}")


def leads_out(name: str) -> bool:
    """Whether a name, taken as one inside a folder, leads out of it, here or on Windows."""
    kinds = PurePosixPath(name), PureWindowsPath(name)
    return "\0" in name or any(path.anchor or ".." in path.parts for path in kinds)


def is_file(path: Path) -> bool:
    """`path.is_file()`; of a name longer than any file's, too, which Python raises an error for."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold something, stripped; a byte-order mark is no text."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # \r\n, too; names may hold other breaks
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error}); save it as UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def paired(
    images: list[Path],
    masks: list[Path],
    num_classes: int,
    ignore_label: int,
    label_map: np.ndarray | None = None,
) -> Pairs:
    """The source of these files.

    Raises:
      DataError: listing those that do not exist.
    """
    missing = [path for path in (*images, *masks) if not is_file(path)]
    if missing:
        raise DataError(f"{len(missing)} listed files do not exist:\n{first_few(missing)}")
    return Pairs(images, masks, num_classes, ignore_label, label_map)
