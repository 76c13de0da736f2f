"""What label ids mean: class names, colours, and what masks have stored for them.

All of it is one file: `classes.json` beside a user's own images/ and masks/, and `labels.json` that
training leaves in its workdir, so that a checkpoint can be used without its data.

    {
      "classes": [
        {"name": "background", "color": [0, 0, 0], "ids": [0]},
        {"name": "road", "color": [128, 64, 128], "ids": [7, 8]},
        {"name": "car", "color": [[0, 0, 142], [0, 0, 70]], "ids": [26, 27]}
      ],
      "ignore": {"color": [255, 255, 255], "ids": [255], "others": false}
    }

A class's label is its place in the list, from 0. Only "name" is needed. "color" is how the class is
drawn, and what stands for it in masks of RGB colours; several are given as a list, the first is
drawn. "ids" are what stands for it in masks of ids (grey, palette, 16-bit); a class without has its
place in the list. "ignore" says what is void, no class at all: `data.ignore_label` always is, but
where a class has that id; "others": true adds every id and colour that is not in the file, which
are errors otherwise.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.errors import DataError, did_you_mean

IGNORE_LABEL = 255
FILE = "labels.json"  # beside weights and predictions: what their labels mean
HIGHEST_ID = 2**16 - 1  # of a mask

VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()
SYNTHETIC_CLASSES = "background disk square triangle star polyline mesh twin_a twin_b".split()

RGB = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names of the classes, by id, a colour for every id of a byte, and what masks have stored.

    Attributes:
      names: class names, background (if there is one) included.
      palette: [256, 3] uint8 RGB; entry 255 is the colour of `ignore_label`.
      ignore_label: the label of void.
      raw_ids: the ids of each class in the masks ("raw"); None: its label.
      void_ids: raw ids that are void, beside `ignore_label`.
      others_void: raw ids and colours that are none of these are void, not an error.
      colors: {RGB: label} of masks in colours; empty: there are none.
    """

    names: tuple[str, ...]
    palette: np.ndarray
    ignore_label: int = IGNORE_LABEL
    raw_ids: tuple[tuple[int, ...], ...] | None = None
    void_ids: tuple[int, ...] = ()
    others_void: bool = False
    colors: Mapping[RGB, int] = dataclasses.field(default_factory=dict)

    @property
    def ids(self) -> tuple[tuple[int, ...], ...]:
        """The ids of each class in the masks."""
        return self.raw_ids or tuple((label,) for label in range(len(self.names)))

    @property
    def label_map(self) -> np.ndarray | None:
        """The `table` of the raw ids; None where they are labels already."""
        if self.raw_ids is None and not (self.void_ids or self.others_void):
            return None
        label_map = dict.fromkeys(self.void_ids, self.ignore_label)
        label_map |= {raw: label for label, ids in enumerate(self.ids) for raw in ids}
        return table(label_map, self.ignore_label, self.others_void)

    @property
    def first_raw_ids(self) -> np.ndarray:
        """The raw id of each class, of several the first: [classes] uint8, or uint16.

        Raises:
          DataError: for a class without one.
        """
        lacking = [name for name, ids in zip(self.names, self.ids) if not ids]
        if lacking:
            raise DataError(f"no mask has an id for {', '.join(lacking)}: there are no raw ids")
        first = np.array([ids[0] for ids in self.ids])
        return first.astype(np.uint8 if first.max() < 256 else np.uint16)

    def mapped(self, label_map: Mapping[int, int], others_void: bool = False) -> "Labels":
        """These labels for masks whose ids go through {raw id: label}."""

        def raw_ids(label):
            return tuple(raw for raw, to in label_map.items() if to == label)

        return dataclasses.replace(
            self,
            raw_ids=tuple(map(raw_ids, range(len(self.names)))),
            void_ids=raw_ids(self.ignore_label),
            others_void=others_void,
        )

    def colored(self, colors: Mapping[RGB, int]) -> "Labels":
        """These labels for masks in colours, {RGB: label}, and drawn in them."""
        palette = self.palette.copy()
        for rgb, label in reversed(colors.items()):  # of several the first is drawn
            palette[255 if label == self.ignore_label else label] = rgb
        return dataclasses.replace(self, palette=palette, colors=dict(colors))

    def to_json(self) -> str:
        """These labels in the form of the module's docstring."""
        taken = set(self.colors)

        def color(label, drawn):
            found = [list(rgb) for rgb, to in self.colors.items() if to == label]
            if not found and drawn not in taken:  # none of two alike could be told in a mask
                taken.add(drawn)
                found = [list(drawn)]
            return {"color": found[0] if len(found) == 1 else found}

        drawn = [tuple(rgb) for rgb in self.palette.tolist()]
        entries = []
        for label, name in enumerate(self.names):
            ids = {} if self.raw_ids is None else {"ids": self.raw_ids[label]}
            entries.append({"name": name} | color(label, drawn[label]) | ids)
        ignore = color(self.ignore_label, drawn[255])
        ignore |= {"ids": self.void_ids, "others": self.others_void}
        lines = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
        return f'{{\n  "classes": [\n{lines}\n  ],\n  "ignore": {json.dumps(ignore)}\n}}\n'


def read(path: Path, ignore_label: int) -> Labels:
    """Labels of a classes.json or labels.json.

    Raises:
      DataError: for a file that is not in the form of the module's docstring, saying where.
    """
    try:
        given = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also for numbers too long, lists too deep
        raise DataError(f"{path}: not JSON ({error}); put it right") from error
    given = _section(path, "the file", given, {"classes": list, "ignore": dict})
    entries, ignore = given.get("classes"), given.get("ignore", {})
    if not entries:
        raise DataError(f'{path}: needs "classes": [{{"name": "road"}}, ...]')
    keys = {"color": list, "ids": list}
    entries = [_section(path, f"class {i}", e, keys | {"name": str}) for i, e in enumerate(entries)]
    ignore = _section(path, '"ignore"', ignore, keys | {"others": bool})
    names = [entry.get("name", "") for entry in entries]
    check_names(path, names)
    colors, raw_ids = {}, []
    for label, entry in [*enumerate(entries), (ignore_label, ignore)]:
        who = '"ignore"' if entry is ignore else f"class {label} {entry['name']!r}"
        for rgb in _colors(path, who, entry.get("color", [])):
            if rgb in colors:
                raise DataError(f"{path}: {who}: the colour {list(rgb)} is taken already")
            colors[rgb] = label
        raw_ids.append(entry.get("ids", [] if entry is ignore else [label]))
        _check_ids(path, who, raw_ids)
    *of_classes, void = map(tuple, raw_ids)
    own = all(ids == (label,) for label, ids in enumerate(of_classes))
    return Labels(
        tuple(names),
        voc_palette(),
        ignore_label,
        None if own else tuple(of_classes),
        tuple(i for i in void if i != ignore_label),
        ignore.get("others", False),
    ).colored(colors)


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raises DataError unless there are 1 to 256 different names, of characters that print."""
    for i, name in enumerate(names):
        if not name.strip() or not name.isprintable() or name in names[:i]:
            raise DataError(f"{path}: class {i} needs a printable name of its own, not {name!r}")
    if not 1 <= len(names) <= 256:
        raise DataError(f"{path}: {len(names)} classes; labels are bytes: 1 to 256")


def _section(path: Path, who: str, given: Any, keys: Mapping[str, type]) -> dict:
    """`given`, if it is a mapping with no other keys than these, of these types."""
    if not isinstance(given, dict):
        raise DataError(f"{path}: {who} is {str(given)[:40]!r}, not {{{', '.join(keys)}}}")
    for key, value in given.items():
        if key not in keys:
            raise DataError(f"{path}: {who} has a key {key!r}{did_you_mean(key, keys)}")
        if not isinstance(value, keys[key]):
            word = {list: "a list", dict: "{...}", str: "text", bool: "true or false"}[keys[key]]
            raise DataError(f"{path}: {who}: {key!r} is {word}, not {str(value)[:40]!r}")
    return given


def _colors(path: Path, who: str, given: list) -> list[RGB]:
    colors = given if given and isinstance(given[0], list) else [given] if given else []
    for rgb in colors:
        bytes_ = isinstance(rgb, list) and all(type(n) is int and 0 <= n <= 255 for n in rgb)
        if not bytes_ or len(rgb) != 3:
            raise DataError(f'{path}: {who}: "color" is [red, green, blue] of 0..255, not {rgb}')
    return [tuple(rgb) for rgb in colors]


def _check_ids(path: Path, who: str, raw_ids: list[list]) -> None:
    *before, ids = raw_ids
    for i in ids:
        if type(i) is not int or not 0 <= i <= HIGHEST_ID:
            raise DataError(f'{path}: {who}: "ids" are whole numbers 0..{HIGHEST_ID}, not {i!r}')
        if any(i in others for others in before) or ids.count(i) > 1:
            raise DataError(f"{path}: {who}: the id {i} is taken already")


def table(label_map: Mapping[int, int], ignore_label: int, void: bool = False) -> np.ndarray:
    """{raw id: id} as an int16 array by raw id, at least [256]; ids that it lacks are -1, or void.

    Void stays void, unless the map has it.
    """
    size = max([255, ignore_label, *label_map]) + 1
    out = np.full(size, ignore_label if void else -1, np.int16)
    out[ignore_label] = ignore_label
    for raw, label in label_map.items():
        out[raw] = label
    return out


def voc_palette() -> np.ndarray:
    """The PASCAL VOC colour map [256, 3] uint8: the bits of an id, dealt to R, G and B in turn."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.int64)
    for shift in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * shift + channel)) & 1) << (7 - shift)
    return palette.astype(np.uint8)


def labels(
    names,
    num_classes: int | None = None,
    palette: np.ndarray | None = None,
    ignore_label: int = IGNORE_LABEL,
) -> Labels:
    """Labels of `names`, cut or filled up with "class_7" to `num_classes`; None: VOC's colours."""
    names = list(names)
    count = len(names) if num_classes is None else num_classes
    names = names[:count] + [f"class_{i}" for i in range(len(names), count)]
    return Labels(tuple(names), voc_palette() if palette is None else palette, ignore_label)
