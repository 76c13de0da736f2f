"""Archives unpacked without trusting them.

An archive is a stranger's. Everything in it is judged before anything is written, and of what it
holds only names and contents of plain files are taken: no links, devices, owners or modes. That is
less than `tarfile`'s filter="data" lets pass. Files go into a folder of their own first, and from
there into the target: an archive that is refused leaves nothing.
"""

import contextlib
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from deeplab_jax import output
from deeplab_jax.data import files
from deeplab_jax.errors import DataError, ResourceError, first_few

MAX_BYTES = 100 * 10**9  # of an archive, unpacked; configs/common.py has the same
MAX_FILES = 1_000_000
MAX_RATIO = 100  # unpacked bytes for one of the archive; photographs have about 1
MAX_HEADER = 2**20  # bytes that a tar file may have between two files' contents
MB = 10**6
# What the libraries raise on damaged or hostile archives.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, ValueError, OverflowError),
)


def unpack(
    path: Path,
    target: Path,
    *,
    folder: str = "",
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> int:
    """Unpacks a .zip, .tar or .tar.gz; files that are there already stay as they are.

    Args:
      path: of the archive.
      target: the folder, created if need be.
      folder: of the archive, whose content alone is taken; "": all.
      max_bytes: of all files together.
      max_files: entries, folders too.

    Returns:
      How many files were taken.

    Raises:
      DataError: for names that lead out of the target (also on Windows), anything but plain files
        and folders, more than the limits or `MAX_RATIO` times the archive, overlapping or repeated
        entries, damage; for files that would replace others. Then nothing has been written.
      ResourceError: if the disk lacks the space.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such archive")
    half_way = target / f".unpacking-{path.name}"
    with _blaming(path), _opened(path) as archive:
        sizes = _judged(path, archive.entries(), max_bytes, max_files)
        taken = {
            place: target / place.relative_to(folder)
            for place in sizes
            if place.is_relative_to(folder)
        }
        if not taken:
            raise _refusal(path, f"it holds no files{f' in {folder}' if folder else ''}")
        others = [to for at, to in taken.items() if to.exists() and not _same(to, sizes[at])]
        if others:
            raise _refusal(path, f"these are there, and are others:\n{first_few(others)}")
        made = not target.exists()
        target.mkdir(parents=True, exist_ok=True)
        try:
            _check_space(target, sum(sizes.values()))
            shutil.rmtree(half_way, ignore_errors=True)  # of a run that was killed
            with output.Progress(len(taken), f"unpack {path.name}") as progress:
                for place, content in archive.contents(taken):
                    _write(half_way / place, content, sizes[place])
                    progress.advance()
            for place, to in taken.items():
                if not to.exists():
                    to.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(half_way / place, to)
        finally:
            shutil.rmtree(half_way, ignore_errors=True)
            if made and not any(target.iterdir()):
                target.rmdir()
    return len(taken)


def _same(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _check_space(target: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(target).free):
        raise ResourceError(
            f"{target}: {needed / MB:.0f} MB are to be unpacked there, and {free / MB:.0f} are "
            "free; free some, or choose another disk"
        )


def _write(path: Path, content: BinaryIO, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("xb") as file:
        shutil.copyfileobj(content, file)
    if path.stat().st_size != size:
        raise EOFError(f"{path.name} is cut off")


class _Entry(NamedTuple):
    """What an archive says of one of its entries; `kind` is "file", "folder" or what else it is."""

    name: str
    kind: str
    size: int


def _judged(
    path: Path, entries: Iterable[_Entry], max_bytes: int, max_files: int
) -> dict[PurePosixPath, int]:
    """{file: bytes} of an archive that may be unpacked; the first wrong entry ends it."""
    sizes, folders, total = {}, set(), 0
    most = MAX_RATIO * path.stat().st_size
    for number, (name, kind, size) in enumerate(entries, start=1):
        place = PurePosixPath(name)
        if number > max_files:
            raise _refusal(path, f"it has more than data.max_unpacked_files={max_files} entries")
        if files.leads_out(name):
            raise _refusal(path, f"{name!r} in it leads out of the folder")
        if kind not in ("file", "folder") or size < 0:
            raise _refusal(path, f"{name!r} in it is {kind}; plain files and folders are taken")
        total += size
        if total > max_bytes:
            raise _refusal(path, f"its files have more than data.max_unpacked_bytes={max_bytes}")
        if total > most:
            raise _refusal(path, f"unpacked it is over {MAX_RATIO} times as large: a bomb")
        if kind == "file":
            if place in sizes or not place.parts:
                raise _refusal(path, f"{name!r} in it is no name, or there twice")
            sizes[place] = size
            folders.update(place.parents)
        else:
            folders.add(place)
    if both := folders & sizes.keys():
        raise _refusal(path, f"{str(both.pop())!r} in it is a file and a folder")
    return sizes


def _refusal(path: Path, why: str) -> DataError:
    return DataError(f"{path}: refused, and nothing of it was unpacked: {why}")


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataError(
            f"{path}: damaged, or neither .zip, .tar nor .tar.gz ({type(error).__name__}: {error});"
            " nothing of it was unpacked. Get it again"
        ) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The archive, known by how it begins."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"PK":
            with zipfile.ZipFile(file) as archive:
                yield _Zip(archive)
            return
        stream = gzip.GzipFile(fileobj=file) if start[:2] == b"\x1f\x8b" else file
        headers = _Headers(stream)
        with tarfile.open(fileobj=headers, mode="r:") as archive:
            yield _Tar(archive, headers)


class _Zip:
    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive

    def entries(self) -> Iterator[_Entry]:
        """In the order of the archive's directory, whose claims are compared with each other."""
        end = 0
        for info in sorted(self.archive.infolist(), key=lambda info: info.header_offset):
            if info.header_offset < end:
                yield _Entry(info.filename, "inside another entry", 0)
            end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size
            yield _Entry(info.filename, self._kind(info), info.file_size)
        if end > self.archive.start_dir:
            raise zipfile.BadZipFile("its last entry reaches into its directory")

    def _kind(self, info: zipfile.ZipInfo) -> str:
        form = stat.S_IFMT(info.external_attr >> 16)  # 0 unless it was made on Unix
        if info.flag_bits & 1:
            return "encrypted"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return "compressed in an unusual way"
        if form not in (0, stat.S_IFREG, stat.S_IFDIR):
            return "a link or a device"
        return "folder" if info.is_dir() else "file"

    def contents(self, places) -> Iterator[tuple[PurePosixPath, BinaryIO]]:
        for info in self.archive.infolist():
            if not info.is_dir() and (place := PurePosixPath(info.filename)) in places:
                yield place, self.archive.open(info)


class _Headers:
    """A stream that a tar file's headers are read of; they must not unfold to fill the memory.

    Attributes:
      left: bytes that may be read until the next file; None: any number.
    """

    def __init__(self, stream: BinaryIO):
        self.stream, self.left = stream, MAX_HEADER
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if self.left is not None:
            self.left -= size
            if self.left < 0:
                raise tarfile.ReadError(f"a header of more than {MAX_HEADER} bytes")
        return self.stream.read(size)


class _Tar:
    def __init__(self, archive: tarfile.TarFile, headers: _Headers):
        self.archive, self.headers = archive, headers

    def entries(self) -> Iterator[_Entry]:
        for member in self.archive:
            yield _Entry(member.name, self._kind(member), member.size)
            self.headers.left = MAX_HEADER
        # tarfile takes a damaged header for the end.
        self.headers.seek(self.archive.offset)
        if any(self.headers.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("it is damaged after its first files")

    def _kind(self, member: tarfile.TarInfo) -> str:
        if member.isdir():
            return "folder"
        return "file" if member.isreg() and not member.issparse() else "a link or a device"

    def contents(self, places) -> Iterator[tuple[PurePosixPath, BinaryIO]]:
        self.headers.left = None
        for member in self.archive:  # all of them were read and judged
            if member.isreg() and (place := PurePosixPath(member.name)) in places:
                yield place, self.archive.extractfile(member)
