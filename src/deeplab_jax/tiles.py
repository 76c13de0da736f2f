"""Images too large to be seen at once: overlapping tiles, blended, given out piece by piece."""

from collections.abc import Callable, Iterator

import numpy as np

from deeplab_jax.errors import ConfigError

Place = tuple[slice, slice]  # rows and columns of an image


def blended(
    image: np.ndarray,
    see: Callable[[np.ndarray], np.ndarray],
    tile_size: tuple[int, int],
    overlap: int,
) -> Iterator[tuple[Place, np.ndarray]]:
    """Yields (place, [h, w, classes] float32): means of what overlapping tiles say; disjoint.

    A tile weighs less towards its edges, where it sees least around a pixel: by sin² over
    `overlap` px, so that two tiles' weights sum to one and no seam shows. Image-level pooling and
    the field of view end at a tile's edge: the answer is not that of the whole image. Held at once
    are a tile's classes, and those of the rows that two rows of tiles share.

    Args:
      image: [H, W, C].
      see: a tile [h, w, C] → probabilities [h, w, classes] float32. All tiles have one size.
      tile_size: (h, w); a side longer than the image's is the image's.
      overlap: px that neighbours share at least.

    Raises:
      ConfigError: unless 0 <= overlap < half of each side.
    """
    size = image.shape[:2]
    tile_h, tile_w = (min(tile, length) for tile, length in zip(tile_size, size))
    if not 0 <= overlap < min(tile_size) / 2:
        raise ConfigError(
            f"tiles of {tile_size[1]}x{tile_size[0]} px overlapping by {overlap}: the overlap must "
            "be below half a tile"
        )
    (tops, rows), (lefts, columns) = (
        _axis(length, tile, overlap) for length, tile in zip(size, (tile_h, tile_w))
    )
    weights = (ramp(tile_h, overlap)[:, None] * ramp(tile_w, overlap))[..., None]
    above = None  # what the tiles before say of this row of tiles, [h, W, classes]
    for top, bottom in zip(tops, [*tops[1:], size[0]]):
        high, below, window = bottom - top, None, None
        for left, right in zip(lefts, [*lefts[1:], size[1]]):
            probs = np.asarray(see(image[top : top + tile_h, left : left + tile_w]))
            if below is None:
                window = np.zeros(probs.shape, np.float32)
                below = np.empty((tile_h - high, size[1], probs.shape[-1]), np.float32)
            window += weights * probs
            wide = right - left  # no later tile of this row reaches these columns
            done = window[:, :wide]
            if above is not None:
                done[: len(above)] += above[:, left:right]
            below[:, left:right] = done[high:]
            share = rows[top:bottom, None, None] * columns[left:right, None]
            yield np.s_[top:bottom, left:right], done[:high] / share
            window[:, : tile_w - wide] = window[:, wide:]
            window[:, tile_w - wide :] = 0
        above = below


def _axis(length: int, tile: int, overlap: int) -> tuple[list[int], np.ndarray]:
    """(where tiles begin, [length] the sum of their weights)."""
    total = np.zeros(length, np.float32)
    begins = starts(length, tile, overlap)
    for begin in begins:
        total[begin : begin + tile] += ramp(tile, overlap)
    return begins, total


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: the fewest that overlap so much, evenly spread."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def ramp(tile: int, overlap: int) -> np.ndarray:
    """[tile] float32 weights in (0, 1]: sin² from either edge over `overlap` px, 1 between."""
    places = np.arange(tile)
    inside = np.minimum(places, places[::-1]) + 0.5
    rise = np.minimum(inside / max(overlap, 0.5), 1)
    return (np.sin(np.pi / 2 * rise) ** 2).astype(np.float32)
