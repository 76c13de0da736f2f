"""Small plots for the results, drawn as the package's other pictures are."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from deeplab_jax.pictures import INK, PAPER

COLOURS = (
    (8, 64, 129),
    (179, 88, 6),
    (27, 120, 55),
    (152, 0, 67),
    (84, 39, 136),
    (90, 90, 90),
    (0, 130, 150),
    (190, 150, 0),
)
GRID = (221, 221, 221)
TWICE = 2  # drawn larger and made smaller: PIL's lines have steps
LINE = 22


class Axes:
    """A plane to draw on; positions are in the data's units."""

    def __init__(self, size, area, x_range, y_range, logarithmic=False):
        self.image = Image.new("RGB", [TWICE * n for n in size], PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.size, self.area, self.ranges = size, area, (x_range, y_range)
        self.logarithmic = logarithmic

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        left, top, right, bottom = self.area
        (x0, x1), (y0, y1) = self.ranges
        if self.logarithmic:
            x, x0, x1 = math.log(x), math.log(x0), math.log(x1)
        across, up = (x - x0) / ((x1 - x0) or 1), (y - y0) / ((y1 - y0) or 1)
        return TWICE * (left + across * (right - left)), TWICE * (bottom - up * (bottom - top))

    def line(self, points, colour, width=2) -> None:
        self.draw.line([self.at(*p) for p in points], colour, TWICE * width)

    def dot(self, x, y, colour, radius=3) -> None:
        a, b = self.at(x, y)
        r = TWICE * radius
        self.draw.ellipse((a - r, b - r, a + r, b + r), colour)

    def text(self, position, text, anchor="lm", colour=INK) -> None:
        """At a position in px of the picture."""
        font = ImageFont.load_default(13 * TWICE)
        place = [TWICE * n for n in position]
        self.draw.text(place, text, colour, font, anchor=anchor)

    def ticks(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name, y_name) -> None:
        left, top, right, bottom = self.area
        for y in y_ticks:
            self.line([(self.ranges[0][0], y), (self.ranges[0][1], y)], GRID, 1)
            self.text((left - 8, self.at(self.ranges[0][0], y)[1] / TWICE), f"{y:g}", "rm")
        for x in x_ticks:
            self.line([(x, self.ranges[1][0]), (x, self.ranges[1][1])], GRID, 1)
            self.text((self.at(x, 0)[0] / TWICE, bottom + 12), f"{x:g}", "mm")
        self.text(((left + right) / 2, bottom + 30), x_name, "mm")
        self.text((left - 30, top - 14), y_name, "lm")

    def finished(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


def bars(
    labels: Sequence[str], values: Sequence[Sequence[float]], published: Sequence[float | None]
) -> Image.Image:
    """A line a row: a bar to the mean of its values, a dot each, and a mark for the paper's."""
    known = [v for row in values for v in row] + [p for p in published if p is not None]
    margin = 20 + int(max(ImageFont.load_default(13).getlength(label) for label in labels))
    x_range = _range(known)
    bottom = 24 + LINE * len(labels)
    axes = Axes(
        (margin + 420, bottom + 44), (margin, 24, margin + 400, bottom), x_range, (len(labels), 0)
    )
    axes.ticks(_steps(*x_range), (), "mean IoU, %: bar ours, dots its seeds, line the paper's", "")
    for i, (label, row, paper) in enumerate(zip(labels, values, published)):
        mean = sum(row) / len(row)
        corners = axes.at(x_range[0], i + 0.2), axes.at(mean, i + 0.8)
        axes.draw.rectangle([*map(min, zip(*corners)), *map(max, zip(*corners))], (158, 188, 218))
        for value in row:
            axes.dot(value, i + 0.5, COLOURS[0])
        if paper is not None:
            axes.line([(paper, i + 0.1), (paper, i + 0.9)], COLOURS[1], 3)
        axes.text((margin - 10, 24 + LINE * (i + 0.5)), label, "rm")
    return axes.finished()


def curves(
    given: Mapping[str, Sequence[tuple[float, float]]],
    x_name: str,
    y_name: str,
    logarithmic: bool = False,
    joined: bool = True,
) -> Image.Image:
    """Points of each name, joined by a line or not, and a legend."""
    points = [point for row in given.values() for point in row]
    xs, y_range = sorted({x for x, _ in points}), _range([y for _, y in points])
    x_range = (0.8 * xs[0], 1.25 * xs[-1]) if logarithmic else (min(0, xs[0]), xs[-1])
    names = max(ImageFont.load_default(13).getlength(name) for name in given)
    height = max(300, 40 + LINE * len(given))
    axes = Axes(
        (560 + int(names), height + 44), (60, 30, 500, height), x_range, y_range, logarithmic
    )
    axes.ticks(_apart(xs, axes), _steps(*y_range), x_name, y_name)
    for i, (name, row) in enumerate(given.items()):
        colour = COLOURS[i % len(COLOURS)]
        if joined:
            axes.line(row, colour)
        for x, y in row:
            axes.dot(x, y, colour)
        axes.draw.rectangle([TWICE * n for n in (515, 34 + LINE * i, 529, 46 + LINE * i)], colour)
        axes.text((538, 40 + LINE * i), name)
    return axes.finished()


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture of several, from the left."""
    size = sum(p.width for p in pictures), max(p.height for p in pictures)
    out = Image.new("RGB", size, PAPER)
    left = 0
    for picture in pictures:
        out.paste(picture, (left, 0))
        left += picture.width
    return out


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Round numbers around all of them."""
    low, high = min(values), max(values)
    step = _step(low, high)
    return step * math.floor(low / step - 0.5), step * math.ceil(high / step + 0.5)


def _step(low: float, high: float) -> float:
    wide = max(high - low, 1e-3) / 4
    size = 10 ** math.floor(math.log10(wide))
    return next(size * n for n in (1, 2, 5, 10) if size * n >= wide)


def _steps(low: float, high: float) -> list[float]:
    step = _step(low, high)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _apart(xs: Sequence[float], axes: Axes) -> list[float]:
    """Of the positions those whose labels do not touch."""
    kept: list[float] = []
    for x in xs:
        if not kept or axes.at(x, 0)[0] - axes.at(kept[-1], 0)[0] > TWICE * 34:
            kept.append(x)
    return kept
