"""Published datasets from the net, and archives unpacked without trusting them.

An archive is a stranger's. Everything in it is judged before anything is written, and of what it
holds only names and contents of plain files are taken: no links, devices, owners or modes. That is
less than `tarfile`'s filter="data" lets pass. Files go into a folder of their own first, and from
there into the target: an archive that is refused leaves nothing.
"""

import contextlib
import gzip
import hashlib
import http.client
import json
import lzma
import os
import shutil
import stat
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from deeplab_jax import output
from deeplab_jax.data import datasets, files
from deeplab_jax.data.datasets.dataset import Archive, Dataset
from deeplab_jax.errors import ConfigError, DataError, ResourceError, did_you_mean, first_few

MAX_BYTES = 100 * 10**9  # of an archive, unpacked; configs/common.py has the same
MAX_FILES = 1_000_000
MAX_RATIO = 100  # unpacked bytes for one of the archive; photographs have about 1
MAX_HEADER = 2**20  # bytes that a tar file may have between two files' contents
DONE = "downloaded.json"  # in the target: {archive: its SHA-256} of those unpacked
TIMEOUT = 60  # s without an answer
CHUNK = 2**20
MB = 10**6
# What the libraries raise on damaged or hostile archives.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, ValueError, OverflowError),
)


def download_or_unpack(config, source: str | None, target: Path | None) -> None:
    """`--mode=download`: gets the dataset of the configuration, or unpacks an archive.

    Args:
      config: its data.name, data.root and limits; None where the other two are given.
      source: an archive on disk; None: those of the dataset.
      target: the folder; None: data.root.

    Raises:
      ConfigError: if it is not said what, or where to; for data that nobody publishes.
      DataError, ResourceError: as `download` and `unpack`.
    """
    if target is None and config is not None and config.data.root:
        target = Path(config.data.root).expanduser()
    if target is None or (source is None and config is None):
        raise ConfigError(
            "--mode=download needs --config.data.root=DIR or --output=DIR, and a --config that "
            "names a published dataset, or --input=ARCHIVE"
        )
    limits = {}
    if config is not None:
        limits = {"max_bytes": config.data.max_unpacked_bytes}
        limits |= {"max_files": config.data.max_unpacked_files}
    if source is not None:
        count = unpack(Path(source).expanduser(), target, **limits)
        output.say(f"{count} files unpacked: {target}")
        return
    name, known = config.data.name, datasets.DATASETS
    if name not in known:
        raise ConfigError(
            f"data.name={name} is no published dataset; these are {', '.join(known)}"
            + did_you_mean(name, known)
        )
    download(name, known[name], target, **limits)


def download(
    name: str,
    dataset: Dataset,
    root: Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> None:
    """Gets a dataset's archives, and unpacks them in `root` as `dataset.find` reads it.

    What is there is not fetched again, be it an archive with the right SHA-256 or its files. One
    process at a time.

    Args:
      name: of the dataset, for messages.
      dataset: what to get.
      root: created if need be; the archives stay there, too.
      max_bytes, max_files: as of `unpack`.

    Raises:
      DataError: for a dataset without open archives, saying what to get by hand; and as `fetch`
        and `unpack`.
    """
    if not dataset.archives:
        raise DataError(
            f"data.name={name} is not to be downloaded by a program: it asks for an agreement, or "
            f"no SHA-256 of its archives is known here. Get {dataset.where}"
        )
    for archive in dataset.archives:
        done = _done(root)
        if done.get(archive.name) == archive.sha256:
            output.say(f"{archive.name}: unpacked already ({root / DONE} says so)")
            continue
        path = fetch(archive, root)
        unpack(path, root, folder=archive.folder, max_bytes=max_bytes, max_files=max_files)
        digests = done | {archive.name: archive.sha256}
        output.write_whole(root / DONE, json.dumps(digests, indent=1) + "\n")
        output.say(f"{archive.name}: unpacked in {root}; the archive itself may go")
    by_hand = f"; what else there is to get by hand: {dataset.by_hand}" if dataset.by_hand else ""
    output.say(f"data.root={root} is ready{by_hand}")


def _done(root: Path) -> dict[str, str]:
    path = root / DONE
    try:
        done = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); remove it") from error
    if not isinstance(done, dict):
        raise DataError(f"{path}: does not say what was unpacked; remove it")
    return done


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive in `folder`, from the first of its addresses that answers.

    It gets its name only when it is whole and its SHA-256 is right; anything else is deleted.

    Raises:
      DataError: for another SHA-256; if no address answers.
    """
    path, part = folder / archive.name, folder / f".{archive.name}.part"
    if path.is_file():
        output.say(f"{path}: is there, comparing its SHA-256")
        advice = "remove it, and the same command downloads it"
        _check_digest(path, output.sha256(path), archive, advice)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    try:
        for url in archive.urls:
            output.say(f"{archive.name}: {archive.size / MB:.1f} MB from {url}")
            try:
                digest = _receive(url, part, archive)
            except _Unanswered as error:
                failures.append(f"{url}: {error}")
                output.say(f"no answer: {error}")
                continue
            advice = "it was deleted. Try again; if it stays so, the file there is not the official"
            _check_digest(path, digest, archive, advice)
            os.replace(part, path)
            return path
    finally:
        part.unlink(missing_ok=True)
    raise DataError(
        f"{archive.name}: cannot be downloaded; try again later, or put it into {folder} by hand "
        f"and give the same command\n{first_few(failures)}"
    )


class _Unanswered(Exception):
    """An address that does not give its file: try another."""


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Tells what the net does wrong from what the disk does: they raise the same errors."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Unanswered(f"{type(error).__name__}: {error}") from error


def _receive(url: str, part: Path, archive: Archive) -> str:
    """Writes what is at `url`; returns its SHA-256. It stops where there is more than there is."""
    digest, size = hashlib.sha256(), 0
    with _asking():
        answer = _opener().open(url, timeout=TIMEOUT)
    progress = output.Progress(archive.size // MB, f"{archive.name} MB")
    with answer, progress, part.open("wb") as file:
        while size <= archive.size:
            with _asking():
                chunk = answer.read(CHUNK)
            if not chunk:
                break
            file.write(chunk)
            digest.update(chunk)
            progress.advance((size + len(chunk)) // MB - size // MB)
            size += len(chunk)
    if size < archive.size:
        raise _Unanswered(f"ended after {size} of {archive.size} bytes")
    return digest.hexdigest()


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone, however an address redirects: no file:, ftp: or data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        *(urllib.request.HTTPHandler, urllib.request.HTTPSHandler, urllib.request.ProxyHandler),
        *(urllib.request.HTTPRedirectHandler, urllib.request.HTTPDefaultErrorHandler),
        *(urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler),
    ):
        opener.add_handler(handler())
    return opener


def _check_digest(path: Path, digest: str, archive: Archive, advice: str) -> None:
    if digest != archive.sha256:
        raise DataError(
            f"{path}: its SHA-256 is {digest}, that of {archive.name} is {archive.sha256}; {advice}"
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
