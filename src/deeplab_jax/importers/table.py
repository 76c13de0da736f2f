"""A layout: a table of renames from foreign names to our paths, each key by exactly one rule."""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]


def same(array: np.ndarray) -> np.ndarray:
    return array


class Rule(NamedTuple):
    """One row: what foreign names match becomes our path.

    Attributes:
      pattern: regular expression of the whole foreign name.
      path: our path, as the match's template or a function of the match; None skips the key.
      change: of the array's axes.
      why: what a skipped key is.
      shape: of an array that each place cuts to its own shape; the foreign one must be this (None:
        of any size there). `change` then takes the array and the wanted shape.
      optional: `path` is a wildcard for all places, of which there may be none; with a `shape` it
        always is.
    """

    pattern: str
    path: str | Callable[[re.Match], str] | None
    change: Callable[..., np.ndarray] = same
    why: str = ""
    shape: tuple[int | None, ...] | None = None
    optional: bool = False

    def places(self, match: re.Match, paths) -> list[str]:
        """What the key fills of our paths; nothing: it is skipped."""
        if self.path is None:
            return []
        path = match.expand(self.path) if isinstance(self.path, str) else self.path(match)
        if self.shape is None and not self.optional:
            return [path]
        return fnmatch.filter(paths, path)


def skip(pattern: str, why: str) -> Rule:
    return Rule(pattern, None, same, why)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One source's way of naming and shaping weights.

    Attributes:
      name: for people.
      signature: patterns that each match some name of the file, and together only this layout's.
      rules: each foreign key must match exactly one, in full.
      infer: {name: shape} → keywords of `models.build`; what shapes cannot tell is the source's
        published default. None: the file describes itself.
      normalization: of the images (`config.data.normalization`), or a function of the keywords.
      absent: patterns that match no name of the file.
      trunk: a backbone alone: leaves outside params/backbone and batch_stats/backbone may stay.
      note: what else these weights need to work, a sentence for people.
      constants: {regular expression of our path: value} for leaves the source does not store.
    """

    name: str
    signature: tuple[str, ...]
    rules: tuple[Rule, ...]
    infer: Callable[[Shapes], dict[str, Any]] | None
    normalization: str | Callable[[Mapping[str, Any]], str]
    absent: tuple[str, ...] = ()
    trunk: bool = False
    note: str = ""
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def matches(self, names) -> bool:
        def found(pattern):
            return any(re.fullmatch(pattern, name) for name in names)

        return all(map(found, self.signature)) and not any(map(found, self.absent))

    def rename(self, weights: Mapping[str, Any], shapes: Shapes) -> "Renamed":
        """Applies the table to {foreign name: array} for the model's {our path: shape}."""
        out = Renamed()
        # Compiled here: a table may have more rules than re's cache has places.
        rules = [(re.compile(rule.pattern), rule) for rule in self.rules]
        for key, array in weights.items():
            hits = [(m, rule) for pattern, rule in rules if (m := pattern.fullmatch(key))]
            if len(hits) != 1:
                out.problems.append(f"{key}: {len(hits) or 'no'} rules match this key of the file")
                continue
            match, rule = hits[0]
            places = rule.places(match, shapes)
            if not places:
                out.skipped.setdefault(rule.why, []).append(key)
            for path in places:
                self._take(key, array, path, rule, shapes, out)
        for path, shape in shapes.items():
            for pattern, value in self.constants.items():
                if path not in out.arrays and re.fullmatch(pattern, path):
                    out.arrays[path] = np.full(shape, value, np.float32)
        return out

    def _take(self, key, array, path, rule, shapes, out) -> None:
        if path not in shapes:
            out.problems.append(f"{key}: the model has no {path}")
            return
        if path in out.sources:
            out.problems.append(f"{key}: fills {path}, as {out.sources[path]} does already")
            return
        wanted = shapes[path]
        # Sizes before contents: a file that claims 1e12 numbers must not get their memory.
        if rule.shape is None:
            theirs = _first_of_more_channels(tuple(array.shape), wanted)
            fits = sorted(n for n in theirs if n > 1) == sorted(n for n in wanted if n > 1)
        else:
            fits = len(array.shape) == len(rule.shape)
            fits = fits and all(r in (None, n) for r, n in zip(rule.shape, array.shape))
        if fits:
            read = np.asarray(array.read() if hasattr(array, "read") else array)
            try:
                changed = rule.change(read) if rule.shape is None else rule.change(read, wanted)
            except (IndexError, ValueError):  # other axes than this layout's
                changed = read
            if changed.ndim == 4 and _first_of_more_channels(changed.shape, wanted) == wanted:
                more = wanted[2] - changed.shape[2]
                if more:
                    out.widened.append(f"{path} by {more}")
                changed = np.pad(changed, ((0, 0), (0, 0), (0, more), (0, 0)))
            if changed.shape == wanted:
                out.arrays[path] = changed
        if path not in out.arrays:
            place = out.other_classes if _other_classes(path, array.shape, wanted) else out.problems
            place.append(f"{key}: shape {tuple(array.shape)}, but {path} is {wanted}")
        out.sources[path] = key


@dataclasses.dataclass
class Renamed:
    """What a table made of a file: {our path: array}, {our path: foreign name}, {why: skipped
    keys}, sentences on what does not fit, and on classifiers of another number of classes, and
    the convolutions of images that got further channels."""

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    other_classes: list[str] = dataclasses.field(default_factory=list)
    widened: list[str] = dataclasses.field(default_factory=list)


def _first_of_more_channels(theirs: tuple[int, ...], ours: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a convolution of RGB with our channels, which are more; else theirs."""
    if len(theirs) != 4 or len(ours) != 4 or ours[2] <= 3:
        return theirs
    for axis in (2, 1):  # HWIO, OIHW
        others = theirs[:axis] + theirs[axis + 1 :]
        if theirs[axis] == 3 and sorted(others) == sorted(ours[:2] + ours[3:]):
            return (*theirs[:axis], ours[2], *theirs[axis + 1 :])
    return theirs


def _other_classes(path: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether a classifier differs in its number of classes alone; theirs may be OIHW."""
    if not path.startswith(("params/logits", "params/classifier")) or len(theirs) != len(ours):
        return False
    return len(ours) == 1 or theirs[:-1] == ours[:-1] or theirs[1:] == (ours[2], *ours[:2])


# --- PyTorch's names -------------------------------------------------------------------------


def dense(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0)  # OIHW → HWIO


def depthwise(array: np.ndarray) -> np.ndarray:
    return array[:, 0].transpose(1, 2, 0)  # [C, 1, kh, kw] → [kh, kw, C]


def last_branch_first(array: np.ndarray) -> np.ndarray:
    """The ASPP's projection: PyTorch concatenates image pooling last, TensorFlow first."""
    array = dense(array)
    return np.roll(array, array.shape[-1], axis=2)  # every branch has the projection's channels


def torch_conv(conv: str, ours, kind: str = "dense", change=None) -> tuple[Rule, ...]:
    """Rule of a PyTorch convolution's kernel; `ours` is our module, as in `Rule.path`."""
    leaf = "kernel" if kind == "dense" else "depthwise_kernel"
    change = change or {"dense": dense, "depthwise": depthwise}[kind]
    return (Rule(rf"{conv}\.weight", _leaf("params", ours, leaf), change),)


def torch_norm(norm: str, ours) -> tuple[Rule, ...]:
    """Rules of a PyTorch batch norm's four arrays."""
    return (
        Rule(rf"{norm}\.weight", _leaf("params", ours, "norm/scale")),
        Rule(rf"{norm}\.bias", _leaf("params", ours, "norm/bias")),
        Rule(rf"{norm}\.running_mean", _leaf("batch_stats", ours, "norm/mean")),
        Rule(rf"{norm}\.running_var", _leaf("batch_stats", ours, "norm/var")),
    )


def torch_conv_bn(conv: str, norm: str, ours, kind: str = "dense", change=None) -> tuple[Rule, ...]:
    """Rules of a PyTorch convolution and its batch norm."""
    return (*torch_conv(conv, ours, kind, change), *torch_norm(norm, ours))


def torch_separable_bn(conv: str, norm: str, ours: str, then=same) -> tuple[Rule, ...]:
    """Rules of a Sequential of depthwise and pointwise convolution, and of the batch norm behind.

    `then` changes both kernels once their axes are ours.
    """
    return (
        *torch_conv(
            rf"{conv}\.0", f"{ours}/depthwise", "depthwise", lambda array: then(depthwise(array))
        ),
        *torch_conv(rf"{conv}\.1", f"{ours}/pointwise", change=lambda array: then(dense(array))),
        *torch_norm(norm, f"{ours}/pointwise"),
    )


def torch_conv_bias(conv: str, ours) -> tuple[Rule, ...]:
    """Rules of a PyTorch convolution with bias."""
    return (*torch_conv(conv, ours), Rule(rf"{conv}\.bias", _leaf("params", ours, "bias")))


TORCH_COUNTERS = skip(r".*\.num_batches_tracked", "counters of batch norm")


def _leaf(collection: str, ours, leaf: str):
    if isinstance(ours, str):
        return f"{collection}/{ours}/{leaf}"
    return lambda match: f"{collection}/{ours(match)}/{leaf}"
