"""Published datasets from the net: from the first address that answers, by SHA-256."""

import contextlib
import hashlib
import http.client
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from deeplab_jax import output
from deeplab_jax.data import datasets
from deeplab_jax.data.datasets.dataset import Archive, Dataset
from deeplab_jax.data.unpacking import MAX_BYTES, MAX_FILES, MB, unpack
from deeplab_jax.errors import ConfigError, DataError, did_you_mean, first_few

DONE = "downloaded.json"  # in the target: {archive: its SHA-256} of those unpacked
TIMEOUT = 60  # s without an answer
CHUNK = 2**20


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
