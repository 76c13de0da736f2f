"""The appearance kernel for CPUs: modes send, and modes listen."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.crf.kernels import (
    Keys,
    clusters,
    exactly,
    gathered,
    kernel,
    listener,
    mode_keys,
    through,
)

CELL = 64  # px
COARSE = 48  # keys of a cell that is far away
SMALL = 2**16  # pixels of an image that can have more of everything


def appearance(points, mask, wide: bool, memory: float):
    """K1 between points [H, W, 5]: the pixels of one mode in a tile of 16 px hear the same.

    A wide kernel needs few keys. Of a narrow one those near a tile of 32 px are fine; the keys of
    the cells of 64 px farther away are gathered once more, into coarse ones.
    """
    height, width, _ = points.shape
    pads = [(0, -n % CELL) for n in (height, width)]
    points, mask = jnp.pad(points, (*pads, (0, 0))), jnp.pad(mask, pads)
    cells = tuple(n // CELL for n in mask.shape)

    ears, tile, modes = 48, 32, 128
    if wide:
        # A small image moves as a whole: there the error of a mode is not only its own.
        ears, tile, modes = (96, 32, 96) if height * width <= SMALL else (16, CELL, 32)
    listeners = mode_keys(points, mask, 16, ears, steps=0)
    keys = mode_keys(points, mask, tile, modes, thin=4, steps=1)
    if wide:
        hear = listener(listeners.mean, keys, memory)
    else:
        hear = _near_and_far(listeners, keys, cells, memory)
    sender, ear = (k.of.reshape(mask.shape)[:height, :width].reshape(-1) for k in (keys, listeners))
    return through(keys._replace(of=sender), lambda sent: hear(sent)[ear], listeners.mean[ear])


def _near_and_far(listeners: Keys, keys: Keys, cells: tuple[int, int], memory: float):
    """A function: sent by each key [M, C] → heard by each listener [L, C].

    Tiles are of 32 px, two by two in a cell, and keys come tile by tile.
    """
    down, across = cells
    cells, tiles = down * across, 4 * down * across
    tile_y, tile_x = jnp.arange(tiles) // (2 * across), jnp.arange(tiles) % (2 * across)
    first = [(t - 1) // 2 for t in (tile_y, tile_x)]  # of two cells down and two across, around it

    by_tile = _regrouped(len(listeners.mean), 2 * down, 2 * across)
    back = jnp.argsort(by_tile.reshape(-1))
    hearing = listeners.mean[by_tile]  # [tiles, n, 5]

    # Near: the 16 tiles of those cells; one more tile stands for all outside the image.
    rows, columns = (2 * f[:, None] + jnp.arange(4) for f in first)
    inside = ((rows >= 0) & (rows < 2 * down))[:, :, None]
    inside = inside & ((columns >= 0) & (columns < 2 * across))[:, None]
    near = jnp.where(inside, rows[:, :, None] * 2 * across + columns[:, None], tiles)
    near = near.reshape(tiles, 16)

    def of_near(x):
        x = x.reshape(tiles, -1, *x.shape[1:])
        x = jnp.concatenate([x, jnp.zeros_like(x[:1])])[near]
        return x.reshape(tiles, -1, *x.shape[3:])

    close = jax.vmap(kernel)(hearing, Keys(*map(of_near, keys[:4]), None))

    # Far: the other cells.
    by_cell = _regrouped(len(keys.mean), down, across)
    find = jax.vmap(partial(clusters, count=COARSE, thin=1, steps=1))
    parent = find(lax.stop_gradient(keys.mean[by_cell]), keys.mass[by_cell][..., 0] > 0)
    parent += COARSE * jnp.arange(cells, dtype=jnp.int32)[:, None]
    parent = jnp.zeros(len(keys.mean), jnp.int32).at[by_cell.reshape(-1)].set(parent.reshape(-1))
    parents = gathered(keys.mean, 1 / keys.precision - 1, keys.mass, parent, COARSE * cells)
    places = jnp.arange(cells) // across, jnp.arange(cells) % across
    around = [(p >= f[:, None]) & (p < f[:, None] + 2) for p, f in zip(places, first)]
    apart = jnp.where(around[0] & around[1], 0.0, 1.0)  # [tiles, cells]
    apart = jnp.repeat(jnp.repeat(apart, COARSE, axis=1), hearing.shape[1], axis=0)
    distant = listener(hearing.reshape(-1, 5), parents, memory, apart)

    def hear(sent):
        heard = distant(jax.ops.segment_sum(sent, parent, COARSE * cells))
        return (heard + exactly(close, of_near(sent)).reshape(heard.shape))[back]

    return hear


def _regrouped(count: int, down: int, across: int):
    """Numbers of modes, given half tile by half tile: [down * across, modes in four of them]."""
    numbers = jnp.arange(count).reshape(down, 2, across, 2, -1)
    return numbers.swapaxes(1, 2).reshape(down * across, -1)
