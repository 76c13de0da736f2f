"""What a run leaves: whole files on disk, lines and progress on screen. No JAX, no segmentation."""

import hashlib
import os
import platform
import re
import sys
import time
from pathlib import Path

from tqdm import tqdm


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file so that no one ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # On a shared disk containers of several machines may have the same process ids.
    temporary = path.with_name(f".{path.name}.tmp{platform.node()}-{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """The digest of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# All that a terminal obeys or hides, but tab and newline: C0, DEL, C1, and what turns text around.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_silent = False


def printable(message: str) -> str:
    """`message` as a terminal may have it: names in it come from strangers' files."""
    shown = _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], message)
    # Names of files need not be text, and would end the program where they are printed.
    return shown.encode(errors="backslashreplace").decode()


def complain(message: str) -> None:
    """Prints what went wrong, on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def silence() -> None:
    """From now on nothing is said and no progress shown: another process speaks for this one."""
    global _silent
    _silent = True


def say(message: str) -> None:
    """Prints a line; above the progress bar if there is one."""
    if _silent:
        return
    try:
        tqdm.write(printable(message), file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # Ctrl-C ended `| tee log`, too; what is to be saved still is
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        silence()


class Progress:
    """A progress bar on a terminal; elsewhere a plain line now and then."""

    def __init__(self, total: int, what: str, initial: int = 0, every_seconds: float = 10.0):
        self.total, self.what, self.done = total, printable(what), initial
        self.every = every_seconds
        self.last = time.monotonic()
        self.bar = None
        if sys.stdout.isatty() and not _silent:
            self.bar = tqdm(
                total=total, initial=initial, desc=self.what, file=sys.stdout, leave=False
            )

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() - self.last > self.every:
            self.last = time.monotonic()
            say(f"{self.what} {self.done}/{self.total}")

    def note(self, **values: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix(values, refresh=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()
