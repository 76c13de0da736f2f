"""Pictures of labels: palettes, overlays, legends, panels, confusion matrices, contact sheets.

All take and give numpy or PIL images; images are [H, W, 3] uint8, labels [H, W] integer.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab_jax.data.labels import Labels

ROWS = 256  # of an overlay at a time: large images would take much memory as floats
INK, PAPER = (30, 30, 30), (255, 255, 255)


def png(image: np.ndarray | Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def indexed(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Labels as a palette image: pixel values are the ids, viewers show the colours."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette.tobytes())
    return image


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.6
) -> np.ndarray:
    """The image with its labels' colours laid over it; black classes (background) stay clear."""
    alphas = np.where(palette.any(axis=-1, keepdims=True), np.float32(opacity), np.float32(0))
    shares = palette * alphas + np.float32(0.5)
    out = np.empty(image.shape, np.uint8)
    for row in range(0, len(image), ROWS):
        rows = slice(row, row + ROWS)
        out[rows] = image[rows] * (1 - alphas[labels[rows]]) + shares[labels[rows]]
    return out


def legend(labels: Labels, shares: Sequence[float] | None = None) -> Image.Image:
    """Colour and name of each class; with `shares`, how much of the pixels it takes."""
    line, font = 22, _font(14)
    names = [
        name if shares is None else f"{name}  {100 * share:.2f} %"
        for name, share in zip(labels.names, shares or [0] * len(labels.names))
    ]
    width = 48 + int(max(font.getlength(name) for name in names))
    picture = Image.new("RGB", (width, line * len(names) + 8), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, name in enumerate(names):
        top = 4 + i * line
        colour = tuple(int(c) for c in labels.palette[i])
        draw.rectangle((6, top + 2, 30, top + line - 4), fill=colour, outline=INK)
        draw.text((38, top + 1), name, INK, font)
    return picture


def panel(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Image.Image:
    """Pictures [h, w, 3] in a grid under column titles; each row as high as its highest."""
    gap, head = 4, 22
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    widths = [max(row[i].shape[1] for row in rows) for i in range(len(titles))]
    size = (sum(widths) + gap * (len(widths) + 1), head + sum(heights) + gap * len(heights))
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    left = gap
    for i, title in enumerate(titles):
        draw.text((left, 3), title, INK, _font(14))
        top = head
        for row, height in zip(rows, heights):
            picture.paste(Image.fromarray(row[i]), (left, top))
            top += height + gap
        left += widths[i] + gap
    return picture


def contact_sheet(tiles: Sequence[np.ndarray], title: str, columns: int = 4) -> Image.Image:
    """Pictures [h, w, 3], at least one, in rows of `columns`, under a title."""
    rows = [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    rows[-1] += [np.full((1, 1, 3), 255, np.uint8)] * (len(rows[0]) - len(rows[-1]))
    return panel(rows, [title] + [""] * (len(rows[0]) - 1))


def confusion_matrix(confusion: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Rows (truth) in per cent of themselves; darker is more."""
    cell, font, small = 34, _font(14), _font(11)
    margin = 16 + int(max(font.getlength(name) for name in names))
    size = margin + cell * len(names) + 8
    picture = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(picture)
    totals = confusion.sum(axis=1)
    for i, name in enumerate(names):
        start = margin + i * cell
        draw.text((margin - 8, start + cell // 2), name, INK, font, anchor="rm")
        label = Image.new("RGB", (margin - 8, 20), PAPER)
        ImageDraw.Draw(label).text((0, 10), name, INK, font, anchor="lm")
        picture.paste(label.rotate(90, expand=True), (start + cell // 2 - 10, 0))
        for j in range(len(names)):
            share = confusion[i, j] / totals[i] if totals[i] else 0.0
            left = margin + j * cell
            shade = tuple(int(255 - share * (255 - c)) for c in (8, 64, 129))
            draw.rectangle((left, start, left + cell - 2, start + cell - 2), fill=shade)
            if round(100 * share):
                ink = PAPER if share > 0.5 else INK
                centre = (left + cell // 2 - 1, start + cell // 2 - 1)
                draw.text(centre, f"{100 * share:.0f}", ink, small, anchor="mm")
    return picture


def fit(image: np.ndarray, longest: int) -> np.ndarray:
    """The image made smaller, if need be, so that its longer side is `longest` px."""
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    size = tuple(max(1, round(n * scale)) for n in image.shape[1::-1])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def named(image: np.ndarray, name: str) -> np.ndarray:
    """The image with a name in its upper left corner."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = draw.textbbox((6, 4), name, _font(14))
    draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=PAPER)
    draw.text((6, 4), name, INK, _font(14))
    return np.asarray(picture)


def _font(size: int):
    return ImageFont.load_default(size)
