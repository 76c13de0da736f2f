"""What `--input` stands for: a file, a folder with its sub-folders, a glob."""

import glob
import re
from pathlib import Path

from deeplab_jax.data.image_files import IMAGE_SUFFIXES
from deeplab_jax.errors import DataError


def find_images(path: str | Path, without: Path | None = None) -> dict[Path, Path]:
    """The images that a file, a folder with its sub-folders, or a glob stands for.

    Hidden files are none, and linked sub-folders are not entered: links may go in circles.

    Args:
      path: "**" in a glob is any number of folders.
      without: a folder inside the one to search, which is passed over: where results go.

    Returns:
      {file: where it is below the folder}, in natural order: 9.jpg before 10.jpg. The folder of a
      glob is what precedes its first wildcard, that of a file its own.

    Raises:
      DataError: if there are none.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return {given: Path(given.name)}
    folder, pattern = (given, "**/*") if given.is_dir() else _split_glob(given)
    outside = without and without.resolve()
    found = {}
    for file in folder.glob(pattern):
        place = file.relative_to(folder)
        hidden = any(part.startswith(".") and part != ".." for part in place.parts)
        image = not given.is_dir() or file.suffix.lower() in IMAGE_SUFFIXES
        if image and not hidden and file.is_file() and not _inside(file, outside, folder):
            found[file] = place
    if not found:
        raise DataError(
            f"{path}: no image found; give a file, a folder of {', '.join(IMAGE_SUFFIXES)} files, "
            "or a quoted glob"
        )
    return dict(sorted(found.items(), key=lambda item: _natural(item[1])))


def _split_glob(given: Path) -> tuple[Path, str]:
    """(the folder before the first wildcard, the pattern from there on)."""
    parts = [part if part == "**" else re.sub(r"\*+", "*", part) for part in given.parts]
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    if parts[-1] == "**":
        parts.append("*")
    return Path(*parts[:first]), "/".join(parts[first:])


def _inside(file: Path, folder: Path | None, searched: Path) -> bool:
    """Whether `file` lies in `folder`, if that is a part of what is searched."""
    if folder is None or searched.resolve().is_relative_to(folder):
        return False
    return file.resolve().is_relative_to(folder)


def _natural(place: Path) -> list:
    """A key that sorts by folders, and numbers in names by what they count."""
    pieces = [re.split("([0-9]+)", part) for part in place.parts]
    counted = [[int(p) if i % 2 else p for i, p in enumerate(part)] for part in pieces]
    return [counted, str(place)]
