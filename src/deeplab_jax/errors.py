"""One error type an exit code: a user's mistake ends in a sentence, not in a stack trace."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right; the message says what, which file, and what to do."""

    exit_code = 2


class ConfigError(UserError):
    """Wrong usage or configuration."""

    exit_code = 2


class DataError(UserError):
    """An image, a mask or a dataset that cannot be used."""

    exit_code = 3


class UnreadableError(DataError):
    """A file that is damaged, or not what its name says; `data.on_error=skip` passes over it."""


class WeightsError(UserError):
    """A checkpoint or weight file that cannot be used."""

    exit_code = 4


class NumericsError(UserError):
    """Training left the finite numbers."""

    exit_code = 5


class ResourceError(UserError):
    """Disk, memory or permission ran out."""

    exit_code = 6


class Preempted(UserError):
    """The machine is wanted back; everything is saved, and the same command goes on."""

    exit_code = 75


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the choice nearest to `word`, or "" when none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def first_few(items: Iterable, limit: int = 10) -> str:
    """The first items a line each, and how many more there are."""
    items = list(items)
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)
