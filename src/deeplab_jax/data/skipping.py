"""Files that cannot be read, passed over and counted (`data.on_error=skip`)."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeplab_jax import output
from deeplab_jax.data import files
from deeplab_jax.errors import DataError, UnreadableError, first_few

TOLD = 10  # one by one; the rest is only counted
SHARE = 0.1  # of a split; more is no accident


def unreadable(source) -> dict[int, str]:
    """{index: what was wrong} of the examples passed over so far; {} where none are."""
    while source is not None and not isinstance(source, Skipping):
        source = getattr(source, "source", None)
    return source.unreadable if source is not None else {}


def check_share(count: int, total: int, which: str = "") -> None:
    """Raises DataError if more than a tenth of all examples was passed over."""
    if count > max(TOLD, int(SHARE * total)):
        raise DataError(f"{count} of {total} examples cannot be read, too many to pass over{which}")


@dataclasses.dataclass(frozen=True)
class Skipping:
    """A source whose unreadable examples are replaced, each by the next that can be read.

    Which one that is depends on the files alone, so a stream goes on as it was wherever it is
    resumed. A replacement has a key "replaced", by which evaluation leaves it out.

    Attributes:
      source: random access; only its `UnreadableError`s are passed over.
      unreadable: {index: what was wrong}, of those met so far.
    """

    source: Any
    unreadable: dict[int, str] = dataclasses.field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        """The example, or its replacement.

        Raises:
          DataError: as `source`; also if more than a tenth of it cannot be read.
        """
        found, example = self._first(int(index), self.source.__getitem__)
        return example if found == index else example | {"replaced": True}

    def label(self, index: int):
        """The label map alone, of the example or its replacement; errors as above."""
        whole = getattr(self.source, "label", None) or (lambda i: self.source[i]["label"])
        return self._first(int(index), whole)[1]

    def _first(self, index: int, read):
        for i in itertools.chain(range(index, len(self)), range(index)):
            if i not in self.unreadable:
                try:
                    return i, read(i)
                except UnreadableError as error:
                    self._note(i, str(error))
        raise DataError(f"no example can be read:\n{first_few(self.unreadable.values())}")

    def _note(self, index: int, problem: str) -> None:
        if self.unreadable.setdefault(index, problem) is not problem:
            return  # another thread met it at the same time
        count = len(self.unreadable)
        check_share(count, len(self), f":\n{first_few(self.unreadable.values())}")
        if count <= TOLD:
            output.say(f"skipped: {problem}")

    @property
    def images(self) -> Sequence[Path]:
        """The source's files, if it has them."""
        return getattr(self.source, "images", ())

    def fingerprint(self) -> str:
        """The source's own: where all can be read the stream is the same."""
        return files.fingerprint(self.source)
