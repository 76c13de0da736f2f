"""SHA-256 of every file that a checkpoint is read from: whether they are what was written.

Orbax restores flipped bits of arrays without a word, so this is looked at first.
"""

import hashlib
import re
from pathlib import Path

import orbax.checkpoint as ocp

from deeplab_jax import __version__
from deeplab_jax.errors import WeightsError
from deeplab_jax.output import sha256

FILE = "SHA256SUMS"  # `sha256sum --check SHA256SUMS` reads it, too
FORMAT = 2  # of checkpoints; those of 1 have no digests
POSITION = "position"

_HEAD = "# deeplab_jax {version}, checkpoints of format {format}"
# Orbax writes these while, and after, a finished step gets its name: times of day, and that it has
# one. Nothing is read from them.
_NOTES = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write(folder: Path) -> None:
    """Writes the digests of the files in a checkpoint's `folder`, as they are now."""
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = [_HEAD.format(version=__version__, format=FORMAT)]
    lines += [f"{sha256(folder / name)}  {name}" for name in names if name not in _NOTES]
    text = "".join(f"{line}\n" for line in lines)
    (folder / FILE).write_text(f"{text}# {_digest_of(text.encode())}  the lines above\n")


def problem(folder: Path) -> str:
    """What is wrong with a checkpoint's files: "" if each is, bit for bit, as it was written.

    One without digests, of an older version, counts as sound.

    Raises:
      WeightsError: for a checkpoint of a newer version.
    """
    try:
        content = (folder / FILE).read_bytes()
    except OSError:
        return "" if without_digests(folder) else f"{FILE} is missing"
    text, _, last = content.removesuffix(b"\n").rpartition(b"\n")
    text += b"\n"
    if last != f"# {_digest_of(text)}  the lines above".encode():
        return f"{FILE} is damaged"
    head, *lines = text.decode().splitlines()
    _check_format(folder, head)
    for line in lines:
        digest, name = line.split("  ", 1)
        try:
            if sha256(folder / name) != digest:
                return f"{name} is not what was saved"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""


def without_digests(folder: Path) -> bool:
    """Whether a checkpoint is of the time before there were any."""
    if (folder / FILE).exists():
        return False
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            position = checkpointer.restore((folder / POSITION).absolute())
    except Exception:  # Orbax raises many kinds: whatever it is, it says nothing of its age
        return False
    return "format" not in position


def _check_format(folder: Path, head: str) -> None:
    pattern = re.escape(_HEAD).replace(r"\{version\}", "(.+)").replace(r"\{format\}", r"(\d+)")
    found = re.fullmatch(pattern, head)
    version, number = (found[1], int(found[2])) if found else ("a later version", None)
    if number != FORMAT:
        raise WeightsError(
            f"{folder}: a checkpoint of format {number or 'unknown'}, written by deeplab_jax "
            f"{version}; this is {__version__}, which reads formats 1 to {FORMAT}. Update it: "
            "pip install --upgrade deeplab_jax"
        )


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
