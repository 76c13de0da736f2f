"""A layout: a table of renames from foreign names to our paths, each key by exactly one rule."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

# (foreign name as a regular expression, our path as its template, change of axes); a path of
# None skips the key.
Rule = tuple[str, str | None, Callable[[np.ndarray], np.ndarray]]


def same(array: np.ndarray) -> np.ndarray:
    return array


@dataclasses.dataclass(frozen=True)
class Layout:
    """One source's way of naming and shaping weights.

    Attributes:
      name: for people.
      signature: names that only this layout has.
      rules: each foreign key must match exactly one, in full.
      trunk: a backbone alone: leaves outside params/backbone and batch_stats/backbone may stay.
      note: what else these weights need to work, a sentence for people.
      constants: {regular expression of our path: value} for leaves the source does not store.
    """

    name: str
    signature: frozenset[str]
    rules: tuple[Rule, ...]
    trunk: bool = False
    note: str = ""
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def rename(
        self, weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Returns ({our path: array}, [what does not fit])."""
        out, problems = {}, []
        for key, array in weights.items():
            hits = [(m, rule) for rule in self.rules if (m := re.fullmatch(rule[0], key))]
            if len(hits) != 1:
                problems.append(f"{key}: {len(hits) or 'no'} rules match this key of the file")
                continue
            match, (_, template, change) = hits[0]
            if template is None:
                continue
            path = match.expand(template)
            if path not in shapes:
                problems.append(f"{key}: the model has no {path}")
            elif (array := change(array)).shape != shapes[path]:
                problems.append(f"{key}: shape {array.shape}, but {path} is {shapes[path]}")
            elif path in out:
                problems.append(f"{key}: {path} is filled twice")
            else:
                out[path] = array
        for path, shape in shapes.items():
            for pattern, value in self.constants.items():
                if path not in out and re.fullmatch(pattern, path):
                    out[path] = np.full(shape, value, np.float32)
        return out, problems
