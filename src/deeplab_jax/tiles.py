"""Images too large to be seen at once: overlapping tiles, blended, a band of rows at a time."""

from collections.abc import Callable, Iterator

import numpy as np

from deeplab_jax.errors import ConfigError


def blended(
    image: np.ndarray,
    see: Callable[[np.ndarray], np.ndarray],
    tile_size: tuple[int, int],
    overlap: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (top, [rows, W, classes] float32): the mean of what overlapping tiles say, by rows.

    A tile weighs less towards its edges, where it sees least around a pixel: by sin² over
    `overlap` px, so that two tiles' weights sum to one and no seam shows. Image-level pooling and
    the field of view end at a tile's edge: the answer is not that of the whole image. Memory is
    that of a band as high as a tile, whatever the image's height.

    Args:
      image: [H, W, C].
      see: a tile [h, w, C] → probabilities [h, w, classes] float32. All tiles have one size.
      tile_size: (h, w); a side longer than the image's is the image's.
      overlap: px that neighbours share at least.

    Raises:
      ConfigError: unless 0 <= overlap < half of each side.
    """
    height, width = image.shape[:2]
    tile_h, tile_w = (min(tile, size) for tile, size in zip(tile_size, (height, width)))
    if not 0 <= overlap < min(tile_size) / 2:
        raise ConfigError(
            f"tiles of {tile_size[1]}x{tile_size[0]} px overlapping by {overlap}: the overlap must "
            "be below half a tile"
        )
    tops, lefts = starts(height, tile_h, overlap), starts(width, tile_w, overlap)
    weights = ramp(tile_h, overlap)[:, None] * ramp(tile_w, overlap)
    total = share = None
    for top, following in zip(tops, [*tops[1:], height]):
        for left in lefts:
            probs = np.asarray(see(image[top : top + tile_h, left : left + tile_w]))
            if total is None:
                total = np.zeros((tile_h, width, probs.shape[-1]), np.float32)
                share = np.zeros((tile_h, width, 1), np.float32)
            total[:, left : left + tile_w] += weights[..., None] * probs
            share[:, left : left + tile_w] += weights[..., None]
        done = following - top  # no later tile reaches these rows
        yield top, total[:done] / share[:done]
        for band in (total, share):
            band[: tile_h - done] = band[done:]
            band[tile_h - done :] = 0


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
