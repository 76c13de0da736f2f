"""One run at a time in a workdir."""

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from deeplab_jax import runtime
from deeplab_jax.errors import ResourceError

FILE = ".training.lock"  # experiments/ have a .lock of their own there
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Makes `workdir` if need be, and holds it for this process, or run of several, alone.

    The lock is the kernel's, on workdir/.training.lock: it ends with the process, however that
    ends, and what a killed one left there is no obstacle. Whose it is can be read in the file.

    Raises:
      ResourceError: if another process holds it, or nothing can be written there.
    """
    if not runtime.leads():
        yield
        return
    path = workdir / FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ResourceError(
            f"{workdir}: nothing can be written there ({error.strerror}): change its permissions, "
            "or use another --workdir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ResourceError(
                f"{workdir} is in use by {file.read().strip() or 'another process'}: wait for it, "
                "stop it, or use another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            runtime.say(
                f"warning: {workdir} lies on a disk without locks: train there once at a time"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
