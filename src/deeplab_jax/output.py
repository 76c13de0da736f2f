"""What a run leaves: whole files on disk, lines and progress on screen. No JAX, no segmentation."""

import os
import platform
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


_silent = False


def silence() -> None:
    """From now on nothing is said and no progress shown: another process speaks for this one."""
    global _silent
    _silent = True


def say(message: str) -> None:
    """Prints a line; above the progress bar if there is one."""
    if _silent:
        return
    # Names of files need not be text, and would end the program here.
    tqdm.write(message.encode(errors="backslashreplace").decode(), file=sys.stdout)
    sys.stdout.flush()


class Progress:
    """A progress bar on a terminal; elsewhere a plain line now and then."""

    def __init__(self, total: int, what: str, initial: int = 0, every_seconds: float = 10.0):
        self.total, self.what, self.done = total, what, initial
        self.every = every_seconds
        self.last = time.monotonic()
        self.bar = None
        if sys.stdout.isatty() and not _silent:
            self.bar = tqdm(total=total, initial=initial, desc=what, file=sys.stdout, leave=False)

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
