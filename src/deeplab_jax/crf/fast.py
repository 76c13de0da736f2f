"""Mean field for CPUs: modes send, modes listen, and the pixels still in doubt listen themselves.

An image is cut into cells of about 64 px, each of 2 x 2 tiles, each of 2 x 2 subtiles. At first the
pixels of one mode in a subtile, an ear, hear the same. After two to four iterations most of an
image's pixels are settled: what they send hardly changes any more. From there on only those in
doubt are updated, each hearing at its own place, and the settled follow once more at the end. Where
many stay in doubt, all go on by ears, and in the last iterations some listen. Keys near a listener
are modes of tiles; those of each cell farther away are gathered once more, into coarse ones.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.crf import kernels
from deeplab_jax.crf.kernels import (
    Keys,
    Potential,
    clusters,
    exactly,
    gathered,
    heard_of_itself,
    kernel,
    mode_keys,
    norms,
    update,
)

LARGEST = 68  # px, the side of a cell
# Shares of the pixels that may be in doubt: the least that holds all who are. Where none does, all
# pixels go on by ears, and only in the last iterations do those of most doubt listen.
LEVELS, LAST = (1 / 18, 1 / 12, 1 / 9, 1 / 6), 3
DOUBT = 0.01  # of a pixel's most likely class
BLOCK = 64  # listeners that share the keys near them
COARSE_ENOUGH = 2.5  # px of sigma_gamma
AT_ONCE = 2e6  # bytes of a kernel too large to be kept


class Effort(NamedTuple):
    """How closely to look.

    Attributes:
      keys: of a tile.
      coarse: keys of a cell that is far away.
      ears: of a subtile.
      settling: iterations of all pixels.
    """

    keys: int
    coarse: int
    ears: int
    settling: int


# A wide kernel sees far with all its weight, and moves an image as a whole in its first iterations.
WIDE, NARROW = Effort(32, 32, 20, 4), Effort(64, 32, 24, 2)


class Listeners(NamedTuple):
    """Pixels that listen themselves, in blocks.

    Attributes:
      pixel: [blocks * BLOCK] int32, their numbers; that of no pixel, N, where a block is not full.
      window: [blocks] int32, where each block lies.
    """

    pixel: jax.Array
    window: jax.Array


class Filter(NamedTuple):
    """A kernel [N, C] → [N, C]: N pixels send to M keys, which L ears hear.

    Attributes:
      of: [N] int32, the key that a pixel sends to.
      count: M.
      hear: [M, C] → [L, C].
      ear: [N] int32, the ear that a pixel hears by.
      itself: [N, 1], what that leaves out of a pixel's hearing itself.
      closely: Listeners → their own (hear, itself).
      settling: iterations of all pixels that it needs.
    """

    of: jax.Array
    count: int
    hear: Callable[[jax.Array], jax.Array]
    ear: jax.Array
    itself: jax.Array
    closely: Callable[[Listeners], tuple[Callable[[jax.Array], jax.Array], jax.Array]]
    settling: int = 0

    def send(self, values):
        return jax.ops.segment_sum(values, self.of, self.count)

    def __call__(self, values):
        return self.hear(self.send(values))[self.ear] + self.itself * values


def cell(size: tuple[int, int]) -> tuple[int, int]:
    """Sides of an image's cells in px: the fewest that cover it, so that little is padded."""
    return tuple(4 * -(-n // (4 * -(-n // LARGEST))) for n in size)


def padded(x):
    """[H, W, ...] with sides that are multiples of a cell: `cell` of those is the same."""
    pads = [(0, -n % side) for n, side in zip(x.shape, cell(x.shape[:2]))]
    return jnp.pad(x, pads + [(0, 0)] * (x.ndim - 2))


# --- kernels -------------------------------------------------------------------------------------


def smoothness(height: int, width: int, sigma) -> Filter:
    """K2; a wide one among squares of 2 x 2 px, read between their centres in lines."""
    if isinstance(sigma, jax.core.Tracer) or np.asarray(sigma).min() < COARSE_ENOUGH:
        of_pixel = np.arange(height * width, dtype=np.int32)
        hear = kernels.smoothness(height, width, sigma)

        def closely(listeners: Listeners):
            ear = jnp.minimum(listeners.pixel, height * width - 1)
            return lambda sent: hear(sent)[ear], 0.0

        return Filter(jnp.asarray(of_pixel), height * width, hear, of_pixel, 0.0, closely)
    down, across = height // 2, width // 2
    square = jnp.arange(height)[:, None] // 2 * across + jnp.arange(width) // 2
    square = square.reshape(-1).astype(jnp.int32)
    sigma = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), (2,))
    rows, columns = (_to_squares(n, s) for n, s in zip((down, across), sigma))

    def hear(sent):
        channels = sent.shape[1]
        heard = exactly(rows, sent.reshape(down, across * channels))
        heard = exactly(columns, heard.reshape(down, across, channels))
        # Left to itself, XLA would compute this anew wherever it is read.
        heard = lax.optimization_barrier(_doubled(_doubled(heard, 0), 1))
        return heard.reshape(-1, channels)

    here = _doubled(rows, 0)[0, 0] * _doubled(columns, 0)[0, 0]
    itself = jnp.full((height * width, 1), 1 - here)

    def closely(listeners: Listeners):
        ear = jnp.minimum(listeners.pixel, height * width - 1)
        return lambda sent: hear(sent)[ear], itself[ear]

    return Filter(square, down * across, hear, jnp.arange(height * width), itself, closely)


def _to_squares(n: int, sigma):
    """[n, n]: from pairs of pixels in a line, each alike on the average, to the middle of pairs."""
    distance = 2.0 * (jnp.arange(n)[:, None] - jnp.arange(n)).astype(jnp.float32)
    sides = jnp.stack([distance - 0.5, distance + 0.5])
    return jnp.exp(-0.5 * (sides / sigma) ** 2).mean(axis=0)


def _doubled(x, axis: int):
    """[n] → [2 n] along the axis: values a quarter of a step before and after each."""
    before, after = (2 * lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, x.shape[axis] - 1))
    n = x.shape[axis]
    before = before - lax.slice_in_dim(x, 1, 2, axis=axis)
    after = after - lax.slice_in_dim(x, n - 2, n - 1, axis=axis)
    wider = jnp.concatenate([before, x, after], axis)
    sides = [0.75 * x + 0.25 * lax.slice_in_dim(wider, i, i + n, axis=axis) for i in (0, 2)]
    return jnp.stack(sides, axis + 1).reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def appearance(points, mask, wide: bool, memory: float, reach=None) -> Filter:
    """K1 between points [H, W, 5]; H and W are multiples of a cell.

    `reach`, (y, x) in px, is how far it is heard; None is everywhere.
    """
    effort = WIDE if wide else NARROW
    height, width, _ = points.shape
    side = cell((height, width))
    down, across = height // side[0], width // side[1]
    windows = (down + 1) * (across + 1)
    keys = mode_keys(points, mask, (side[0] // 2, side[1] // 2), effort.keys, thin=4, steps=1)
    flat = points.reshape(-1, 5)

    # Keys near a window, of a cell's size but half a cell off: those of the four cells it meets.
    # One more tile stands for all outside the image.
    tiles = jnp.pad(
        jnp.arange(4 * down * across).reshape(2 * down, 2 * across),
        2,
        constant_values=4 * down * across,
    )
    corner = np.divmod(np.arange(windows), across + 1)
    rows, columns = (2 * c[:, None] + jnp.arange(4) for c in corner)
    near = tiles[rows[:, :, None], columns[:, None]].reshape(windows, 16)

    def of_near(x, window):
        x = x.reshape(4 * down * across, -1, *x.shape[1:])
        x = jnp.concatenate([x, jnp.zeros_like(x[:1])])[near[window]]
        return x.reshape(len(window), -1, *x.shape[3:])

    # Far keys: those of all other cells around, as many in each direction as are within reach.
    parents, parent = _coarser(keys, down, across, effort.coarse)
    spans = [down, across]
    if reach is not None:
        spans = [min(n, 2 * int(np.ceil(r / s + 0.5))) for n, r, s in zip(spans, reach, side)]
    first = [np.clip(c - n // 2, 0, m - n) for c, n, m in zip(corner, spans, (down, across))]
    rows, columns = (f[:, None] + np.arange(n) for f, n in zip(first, spans))
    met = [(x >= c[:, None] - 1) & (x <= c[:, None]) for x, c in zip((rows, columns), corner)]
    around = (rows[:, :, None] * across + columns[:, None]).reshape(windows, -1)
    apart = ~(met[0][:, :, None] & met[1][:, None]).reshape(windows, -1)
    everywhere = spans == [down, across]  # then one product hears them all
    count = around.shape[1] * effort.coarse

    def of_far(x, window):
        x = x.reshape(down * across, effort.coarse, *x.shape[1:])[jnp.asarray(around)[window]]
        return x.reshape(len(window), -1, *x.shape[3:])

    def heard_apart(window):  # [windows, count]
        heard = jnp.asarray(apart, jnp.float32)[window]
        return jnp.repeat(heard, effort.coarse, axis=-1)

    def listener(places, window):
        """Of places [blocks, n, 5] in windows [blocks]: sent by keys [M, C] → [blocks * n, C]."""
        blocks, size, _ = places.shape

        def seen(places, window):
            """[blocks, keys, n], and [count, blocks * n] of all: keys first, as products like."""
            close = Keys(*(of_near(x, window) for x in keys[:4]), None)
            if everywhere:
                far = kernel(parents, places.reshape(-1, 5)).reshape(-1, *places.shape[:2])
                far = (far * heard_apart(window).T[:, :, None]).reshape(count, -1)
                return jax.vmap(kernel)(close, places), far
            far = Keys(*(of_far(x, window) for x in parents[:4]), None)
            far = far._replace(height=far.height * heard_apart(window))
            both = (jnp.concatenate(pair, axis=1) for pair in zip(close[:4], far[:4]))
            return jax.vmap(kernel)(Keys(*both, None), places), None

        def product(close, far, window, sent, sent_far):
            sent = of_near(sent, window)
            if far is None:
                sent = jnp.concatenate([sent, of_far(sent_far, window)], axis=1)
            heard = exactly(sent.swapaxes(1, 2), close)
            if far is not None:
                far = exactly(sent_far.T, far).reshape(-1, len(window), size)
                heard = heard + far.swapaxes(0, 1)
            return heard.swapaxes(1, 2).reshape(-1, heard.shape[1])

        of_block = 4 * size * (16 * effort.keys + count)  # bytes
        whole = blocks * of_block <= memory
        cached = seen(places, window) if whole else None

        def hear(sent):
            sent_far = jax.ops.segment_sum(sent, parent, len(parents.mean))
            if whole:
                return product(*cached, window, sent, sent_far)

            @jax.checkpoint
            def some(part):
                return product(*seen(*part), part[1], sent, sent_far)

            each = max(1, min(blocks, int(AT_ONCE / of_block)))
            pads = -blocks % each
            parts = (
                jnp.pad(places, ((0, pads), (0, 0), (0, 0))).reshape(-1, each, size, 5),
                jnp.pad(window, (0, pads)).reshape(-1, each),
            )
            heard = lax.map(some, parts)
            return heard.reshape(-1, heard.shape[-1])[: blocks * size]

        return hear

    def closely(listeners: Listeners):
        pixel = jnp.minimum(listeners.pixel, len(flat) - 1)
        places = flat[pixel]
        hear = listener(places.reshape(-1, BLOCK, 5), listeners.window)
        return hear, 1 - heard_of_itself(places, keys._replace(of=keys.of[pixel]))

    ears = mode_keys(points, mask, (side[0] // 4, side[1] // 4), effort.ears, steps=0)
    by_tile = np.arange(len(ears.mean)).reshape(2 * down, 2, 2 * across, -1)
    by_tile = by_tile.swapaxes(1, 2).reshape(4 * down * across, -1)
    back = np.argsort(by_tile.reshape(-1))
    tile_y, tile_x = np.divmod(np.arange(len(by_tile)), 2 * across)
    in_order = listener(ears.mean[by_tile], _window(tile_y, tile_x, across))
    itself = 1 - heard_of_itself(ears.mean[ears.of], keys)

    def hear(sent):
        return in_order(sent)[back]

    return Filter(keys.of, len(keys.mean), hear, ears.of, itself, closely, effort.settling)


def _coarser(keys: Keys, down: int, across: int, count: int) -> tuple[Keys, jax.Array]:
    """The keys of each cell, which come tile by tile, as `count` of a cell; and whose each is."""
    by_cell = np.arange(len(keys.mean)).reshape(down, 2, across, 2, -1).swapaxes(1, 2)
    by_cell = by_cell.reshape(down * across, -1)
    find = jax.vmap(partial(clusters, count=count, thin=1, steps=1))
    of = find(lax.stop_gradient(keys.mean[by_cell]), keys.mass[by_cell][..., 0] > 0)
    of += count * jnp.arange(down * across, dtype=jnp.int32)[:, None]
    of = jnp.zeros(len(keys.mean), jnp.int32).at[by_cell.reshape(-1)].set(of.reshape(-1))
    spread = 1 / keys.precision - 1
    return gathered(keys.mean, spread, keys.mass, of, count * down * across), of


def _window(tile_y, tile_x, across: int):
    return (tile_y + 1) // 2 * (across + 1) + (tile_x + 1) // 2


# --- inference -----------------------------------------------------------------------------------


def infer(logits, potentials: Sequence[Potential], mask, iterations: int, every: bool = False):
    """Logits [N, C] → Q [N, C], or of every iteration; the potentials' kernels are Filters."""
    present = mask.reshape(-1, 1).astype(jnp.float32)
    scales = [norms(p, p.kernel(present), present) for p in potentials]

    # Smoothness alone is never cut short.
    settling = max((p.kernel.settling for p in potentials), default=0) or iterations
    settling = min(settling, iterations)

    def iteration(q, _):
        q = update(logits, q, potentials, scales)
        return q, q if every else None

    q, found = lax.scan(iteration, jax.nn.softmax(logits), length=settling)
    if settling == iterations:
        return found if every else q

    limits = [int(part * len(q)) for part in LEVELS]

    def listening(limit, q):
        listeners = in_doubt(doubt(q), limit, mask.shape)
        return _Listening(logits, potentials, scales, present, listeners)

    def doubt(q):
        return jnp.where(mask.reshape(-1), 1 - lax.stop_gradient(q).max(axis=1), 0)

    def of_some(limit, q):
        return listening(limit, q).alone(q, iterations - settling, every)

    def of_all(q):
        last = min(LAST, iterations - settling)
        q, by_ears = lax.scan(iteration, q, length=iterations - settling - last)
        some = listening(limits[-1], q)

        def closer(q, _):
            q = some.among_all(q)
            return q, q if every else None

        q, closely = lax.scan(closer, q, length=last)
        return q, jnp.concatenate([by_ears, closely]) if every else None

    level = sum((jnp.sum(doubt(q) > DOUBT) > limit).astype(jnp.int32) for limit in limits)
    q, rest = lax.switch(level, [*(partial(of_some, limit) for limit in limits), of_all], q)
    return jnp.concatenate([found, rest]) if every else q


class _Listening:
    """Iterations in which some pixels listen themselves."""

    def __init__(self, logits, potentials, scales, present, listeners: Listeners):
        self.logits, self.potentials, self.listeners = logits, potentials, listeners
        here = (listeners.pixel < len(logits)).astype(jnp.float32)[:, None]
        self.own_logits = self.at(logits)
        self.own, self.scales = [], []
        for potential, (before, after) in zip(potentials, scales):
            one = _Own(potential, listeners, present, self.at(present) * here)
            self.own.append(one)
            self.scales.append((self.place(before, one.before), after))

    def at(self, x):
        return x.at[self.listeners.pixel].get(mode="clip")

    def place(self, x, mine):
        return x.at[self.listeners.pixel].set(mine, mode="drop")

    def sent(self, q):
        """By the keys, to each potential."""
        return [p.kernel.send(before * q) for p, (before, _) in zip(self.potentials, self.scales)]

    def mean(self, mine, sent):
        """The listeners' next Q."""
        heard = (one.lend(mine, from_keys) for one, from_keys in zip(self.own, sent))
        return jax.nn.softmax(self.own_logits + sum(heard))

    def among_all(self, q):
        """Q [N, C] after an iteration; all others hear by ears."""
        mine = self.mean(self.at(q), self.sent(q))
        return self.place(update(self.logits, q, self.potentials, self.scales), mine)

    def alone(self, q, iterations: int, every: bool):
        """Q after iterations of the listeners, while all others stay, and a last one of those."""
        settled = self.place(jnp.ones((len(q), 1)), 0)
        others = self.sent(settled * q)

        def iteration(mine, _):
            back = (one.send(mine) for one in self.own)
            mine = self.mean(mine, [a + b for a, b in zip(others, back)])
            return mine, mine if every else None

        mine, all_mine = lax.scan(iteration, self.at(q), length=iterations)
        last = self.place(q, mine)
        followed = update(self.logits, last, self.potentials, self.scales)
        last = jnp.where(settled == 1, followed, last)
        return last, jax.vmap(partial(self.place, q))(all_mine).at[-1].set(last) if every else None


class _Own:
    """A potential at listeners."""

    def __init__(self, potential: Potential, listeners: Listeners, present, own_present):
        self.hear, self.itself = potential.kernel.closely(listeners)
        self.of = potential.kernel.of.at[listeners.pixel].get(mode="clip")
        self.potential = potential
        degree = self.hear(potential.kernel.send(present)) + self.itself
        self.before, self.after = norms(potential, degree, own_present)

    def send(self, q):
        return jax.ops.segment_sum(self.before * q, self.of, self.potential.kernel.count)

    def lend(self, q, sent):
        return self.potential.lend(self.after * (self.hear(sent) + self.itself * self.before * q))


def in_doubt(doubt, limit: int, size: tuple[int, int]) -> Listeners:
    """At most `limit` of the pixels [N], those of most doubt, window by window."""
    (height, width), side = size, cell(size)
    # The least doubt of those chosen, in steps of 1/1024: sorting takes ten times as long.
    step = jnp.clip((1024 * doubt).astype(jnp.int32), 0, 1023)
    at_least = jnp.cumsum(jnp.bincount(step, length=1024)[::-1])[::-1]
    chosen = step >= jnp.maximum(jnp.argmax(at_least <= limit), int(1024 * DOUBT))

    across = width // side[1]
    windows = (height // side[0] + 1) * (across + 1)
    y, x = np.mgrid[:height, :width]
    window = _window(y // (side[0] // 2), x // (side[1] // 2), across).reshape(-1)
    order = np.argsort(window, kind="stable")
    chosen, window = chosen[order], window[order]
    each = jax.ops.segment_sum(chosen.astype(jnp.int32), window, windows)
    blocks = -(-each // BLOCK)
    first_block = jnp.cumsum(blocks) - blocks
    rank = jnp.cumsum(chosen) - 1 - (jnp.cumsum(each) - each)[window]
    room = limit // BLOCK + windows
    slot = jnp.where(chosen, BLOCK * first_block[window] + rank, BLOCK * room)
    pixel = jnp.full(BLOCK * room, len(doubt), jnp.int32)
    pixel = pixel.at[slot].set(order.astype(np.int32), mode="drop")
    of_block = jnp.searchsorted(jnp.cumsum(blocks), jnp.arange(room), side="right")
    of_block = jnp.minimum(of_block, windows - 1).astype(jnp.int32)
    return Listeners(pixel, of_block)
