"""The embedded dataset: procedural scenes that need no file, a pure function of (seed, index).

Made so that what the papers claim can be seen on a laptop in minutes:

* disk, square, triangle, star at log-uniform radii 5..70 px: context at several scales ([V2] ASPP);
* polylines 1..4 px wide, rings and lattices: thin parts and holes (decoder, CRF);
* twins: identical lozenges, told apart only by the stripes of a beacon 48..72 px away. Both kinds
  stand in the same image, so its global content says nothing: only a large field of view that
  keeps the place does ([V1] LargeFOV, [V3] ASPP);
* every object has a hue of its own, drawn alike for all classes; background holds unlabelled
  elongated shapes and the beacons. Colour and place alone tell next to nothing.

On request a depth channel and a second label map: each object stands out of the ground or is sunk
into it, which colour does not show; distractors lie flat.
"""

import dataclasses
import itertools

import numpy as np

from deeplab_jax.data.labels import IGNORE_LABEL

VERSION = 1
SIZE = 193
SPLITS = {"train": 2000, "val": 500}

DISK, SQUARE, TRIANGLE, STAR, POLYLINE, MESH, TWIN_A, TWIN_B = range(1, 9)
SOLIDS = (DISK, SQUARE, TRIANGLE, STAR)
RADIUS = (5.0, 70.0)  # of the disk; the other solids reach as far as makes their areas alike
THIN_RADIUS = (25.0, 65.0)  # half the length of a polyline, the radius of a ring or lattice
LARGE = (45.0, 65.0)
AREA_RADIUS = {DISK: 1.0, SQUARE: 1.2, TRIANGLE: 1.4, STAR: 1.4}
TILT = 0.2  # rad; upright enough that the slope of an edge says something
BEACON_DISTANCE = (48.0, 72.0)
# The other twin's beacon stays out of reach by this factor of the largest distance.
BEACON_MARGIN = 1.3
BEACON_HALF = 6
VOID_WIDTH = 2.0


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Random-access source of scenes.

    Attributes:
      split: "train" (2000 scenes) or "val" (500); they never share a scene.
      seed: of the whole dataset.
      depth: images get a fourth channel, depth.
      geometry: examples get "label_geometry": 0 ground, 1 raised, 2 sunk.
      version: of the generator; another one is another dataset.
    """

    split: str = "train"
    seed: int = 0
    depth: bool = False
    geometry: bool = False
    version: int = VERSION

    def __post_init__(self):
        check(self.split, self.version)

    def __len__(self) -> int:
        return SPLITS[self.split]

    def __getitem__(self, index: int) -> dict:
        """{"image" [193, 193, 3 or 4] uint8, "label" [193, 193] uint8, "links", "name"}.

        "links" [193, 193] uint8 ties each twin to its cue: pixels 1 and 3 are twins, 2 and 4
        their beacons.
        """
        drawn = scene(self.version, self.seed, self.split, int(index))
        image = drawn.image
        if self.depth:
            image = np.concatenate([image, drawn.depth[..., None]], axis=-1)
        example = {
            "image": image,
            "label": drawn.label,
            "links": drawn.links,
            "name": f"{self.split}_{index:04d}",
        }
        if self.geometry:
            example["label_geometry"] = drawn.geometry
        return example


def check(split: str, version: int) -> None:
    """Raises ValueError for a split or a version that there is not."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if version != VERSION:
        raise ValueError(f"synthetic data version {version}: this is version {VERSION}")


def scene(version: int, seed: int, split: str, index: int) -> "_Scene":
    """The scene of that number, drawn."""
    return _Scene(np.random.default_rng((version, seed, list(SPLITS).index(split), index)))


class _Scene:
    """Draws one scene, back to front.

    Attributes:
      image [193, 193, 3], label, links, geometry, depth [193, 193]: uint8.
      objects: (kind, (y, x), reach in px) of all but the twins.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.label = np.zeros((SIZE, SIZE), np.uint8)
        self.links = np.zeros((SIZE, SIZE), np.uint8)
        self.geometry = np.zeros((SIZE, SIZE), np.uint8)
        self.placed: list[tuple[float, float, float]] = []  # (y, x, radius) already taken
        self.objects: list[tuple[int, tuple[float, float], float]] = []
        self._paint_background()

        count = int(rng.integers(4, 8))
        twins = _place_twins(rng) if rng.random() < 0.5 else []
        for (y, x), (beacon_y, beacon_x) in twins:
            self.placed += [(y, x, 22.0), (beacon_y, beacon_x, 12.0)]
        for _ in range(int(rng.integers(1, 4))):
            self._distractor()
        # One large solid in every scene, so that background is about half of it.
        objects = [(int(rng.choice(SOLIDS)), rng.uniform(*LARGE))]
        for _ in range(count - len(twins) - 1):
            kind = int(rng.choice(SOLIDS if rng.random() < 0.5 else (POLYLINE, MESH)))
            objects.append((kind, self._radius(kind)))
        for kind, radius in sorted(objects, key=lambda item: -item[1]):
            self._object(kind, radius)
        tilt, size = rng.uniform(-TILT, TILT), rng.uniform(20, 23)  # the same for both twins
        for k, ((y, x), beacon) in enumerate(twins):
            self._twin((TWIN_A, TWIN_B)[k], (y, x), beacon, tilt, size, link=2 * k + 1)
        self._finish()

    # -- placing --

    def _radius(self, kind: int) -> float:
        low, high = RADIUS if kind in SOLIDS else THIN_RADIUS
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def _place(self, radius: float) -> tuple[float, float]:
        """A centre that keeps clear of what is there, shrinking the claim when it gets crowded."""
        edge = min(0.6 * radius, 0.35 * SIZE)  # most of an object stays in the picture
        for attempt in range(60):
            y, x = self.rng.uniform(edge, SIZE - edge, 2)
            slack = 1.0 - attempt / 120
            if all(
                np.hypot(y - py, x - px) > slack * radius + pr + 3 for py, px, pr in self.placed
            ):
                break
        self.placed.append((y, x, 0.8 * radius))
        return y, x

    # -- painting --

    def _paint_background(self):
        rng = self.rng
        self.base = _colour(rng, rng.uniform(0.15, 0.45))
        grid = rng.normal(0, 0.03, (5, 5, 1)) + rng.normal(0, 0.01, (5, 5, 3))
        self.canvas = (self.base + _smooth(grid)).astype(np.float32)
        self.depth = (0.3 + 0.25 * np.linspace(0, 1, SIZE)[:, None] + 0 * self.label).astype(
            np.float32
        )

    def _paint(self, shape, centre, reach, colour, kind=0, link=0, lift=0.0):
        """Paints where shape(dy, dx), a signed distance in px, is negative; edges are smoothed.

        A ring of void surrounds labelled objects outside their edge, so thin ones keep their
        pixels. Unlabelled marks (kind 0) leave the label of what lies under them.
        """
        (y, x), reach = centre, reach + VOID_WIDTH + 1
        rows = slice(max(int(y - reach), 0), min(int(y + reach) + 2, SIZE))
        columns = slice(max(int(x - reach), 0), min(int(x + reach) + 2, SIZE))
        dy = (np.arange(SIZE)[rows] - y)[:, None].astype(np.float32)
        dx = (np.arange(SIZE)[columns] - x)[None, :].astype(np.float32)
        distance = shape(dy, dx)
        alpha = np.clip(0.5 - distance, 0, 1)[..., None]
        slope = self.rng.normal(0, 0.06, 2)
        shade = 1 + (slope[0] * dy + slope[1] * dx)[..., None] / max(reach, 8)
        area = (rows, columns)
        self.canvas[area] += alpha * (colour * shade - self.canvas[area])
        inside = distance < 0
        if kind:
            label = self.label[area]
            label[(distance >= 0) & (distance < VOID_WIDTH)] = IGNORE_LABEL
            label[inside] = kind
            self.geometry[area][inside] = 1 if lift > 0 else 2
            self.depth[area][inside] += lift
        self.links[area][inside] = link

    def _contrasting(self, place) -> np.ndarray:
        """A colour of any hue, lighter than the background and unlike what lies at `place`."""
        under = float(self.canvas[int(place[0]), int(place[1])].mean())
        base = float(self.base.mean())
        for _ in range(20):
            lightness = self.rng.uniform(base + 0.2, base + 0.5)
            if abs(lightness - under) > 0.15:
                break
        return _colour(self.rng, lightness)

    def _lift(self) -> float:
        return float(self.rng.choice((-1, 1)) * self.rng.uniform(0.08, 0.25))

    def _distractor(self):
        """An elongated ellipse or bar: background, whatever it looks like from nearby."""
        rng = self.rng
        length = rng.uniform(12, 34)
        width = length / rng.uniform(2.6, 4.0)
        angle = rng.uniform(0, np.pi)
        bar = rng.random() < 0.5

        def shape(dy, dx):
            u, v = _rotate(dy, dx, angle)
            if bar:
                return np.maximum(np.abs(u) - length, np.abs(v) - width)
            return (np.hypot(u / length, v / width) - 1) * width

        place = self._place(length)
        self._paint(shape, place, length * 1.1, self._contrasting(place))

    def _object(self, kind: int, radius: float):
        rng = self.rng
        angle = rng.uniform(-TILT, TILT)
        reach = radius * AREA_RADIUS.get(kind, 1.2)
        if kind == DISK:
            shape = lambda dy, dx: np.hypot(dy, dx) - radius  # noqa: E731
        elif kind == SQUARE:
            shape = lambda dy, dx: _polygon(dy, dx, 4, reach, angle + np.pi / 4)  # noqa: E731
        elif kind == TRIANGLE:
            shape = lambda dy, dx: _polygon(dy, dx, 3, reach, angle + np.pi / 6)  # noqa: E731
        elif kind == STAR:
            shape = lambda dy, dx: _star(dy, dx, reach, angle - np.pi / 2)  # noqa: E731
        elif kind == POLYLINE:
            width = rng.uniform(1, 4)
            bends = np.stack([np.linspace(-radius, radius, 4), rng.uniform(-0.6, 0.6, 4) * radius])
            turn = rng.uniform(0, 2 * np.pi)
            points = np.stack(_rotate(bends[0], bends[1], turn), axis=1)
            shape = lambda dy, dx: _polyline(dy, dx, points) - width / 2  # noqa: E731
        elif rng.random() < 0.5:
            half = radius * rng.uniform(0.07, 0.12)
            shape = lambda dy, dx: np.abs(np.hypot(dy, dx) - radius + half) - half  # noqa: E731
        else:
            pitch, half = rng.uniform(12, 16), rng.uniform(1.5, 2.5)
            shape = lambda dy, dx: _lattice(dy, dx, radius * 0.7, pitch, half, angle)  # noqa: E731
        place = self._place(radius)
        self.objects.append((kind, place, reach))
        self._paint(shape, place, reach, self._contrasting(place), kind, lift=self._lift())

    def _twin(self, kind, centre, beacon, tilt, size, link):
        lozenge = lambda dy, dx: _lozenge(*_rotate(dy, dx, tilt), size, 0.65 * size)  # noqa: E731
        self._paint(lozenge, centre, size, self._contrasting(centre), kind, link, lift=self._lift())
        square = lambda dy, dx: np.maximum(np.abs(dy), np.abs(dx)) - BEACON_HALF - 0.5  # noqa: E731
        self._paint(square, beacon, BEACON_HALF + 1, np.float32(0.05), link=link + 1)
        # Stripes across for A, upright for B: neither mirrors into the other.
        for offset in (-4, 0, 4):
            y, x = (
                (beacon[0] + offset, beacon[1])
                if kind == TWIN_A
                else (beacon[0], beacon[1] + offset)
            )
            half = (0.9, 5.5) if kind == TWIN_A else (5.5, 0.9)
            stripe = lambda dy, dx: np.maximum(np.abs(dy) - half[0], np.abs(dx) - half[1])  # noqa: E731, B023
            self._paint(stripe, (y, x), BEACON_HALF, np.float32(0.95), link=link + 1)

    def _finish(self):
        rng = self.rng
        blur = rng.uniform(0, 0.3)
        for axis in (0, 1):
            padded = np.pad(
                self.canvas, [(1, 1) if a == axis else (0, 0) for a in range(3)], "edge"
            )
            ends = [padded.take(range(i, i + SIZE), axis) for i in (0, 2)]
            self.canvas = (1 - blur) * self.canvas + 0.5 * blur * (ends[0] + ends[1])
        noise = rng.standard_normal((SIZE, SIZE, 3), np.float32) * np.float32(
            rng.uniform(0.01, 0.04)
        )
        self.image = (np.clip(self.canvas + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
        noise = rng.standard_normal((SIZE, SIZE), np.float32) * np.float32(0.01)
        self.depth = (np.clip(self.depth + noise, 0, 1) * 255 + 0.5).astype(np.uint8)


def _place_twins(rng) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """[(twin A, its beacon), (twin B, its beacon)], each far from the other's beacon; or []."""
    margin = BEACON_MARGIN * BEACON_DISTANCE[1]
    for _ in range(200):
        twins = rng.uniform(18, SIZE - 18, (2, 2))
        angle = rng.uniform(0, 2 * np.pi, 2)
        reach = rng.uniform(*BEACON_DISTANCE, 2)
        beacons = twins + reach[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        inside = (beacons > 10).all() and (beacons < SIZE - 10).all()
        crossed = np.linalg.norm(twins - beacons[::-1], axis=1)
        if (
            inside
            and crossed.min() > margin
            and np.linalg.norm(twins[0] - twins[1]) > 44
            and np.linalg.norm(beacons[0] - beacons[1]) > 40
        ):
            beacons = np.round(beacons)
            return [(tuple(map(float, t)), tuple(map(float, b))) for t, b in zip(twins, beacons)]
    return []


def _colour(rng, lightness: float) -> np.ndarray:
    """[3] float32 of random hue and moderate saturation whose mean is about `lightness`."""
    hue = rng.uniform(0, 2 * np.pi)
    swing = rng.uniform(0.05, 0.22) * np.cos(hue + np.array([0, 2, 4]) * np.pi / 3)
    return np.clip(lightness + swing, 0.02, 0.98).astype(np.float32)


def _smooth(grid: np.ndarray) -> np.ndarray:
    """Bilinear enlargement of a small [n, n, C] grid to the scene's size."""
    position = np.linspace(0, len(grid) - 1, SIZE)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(len(grid))))
    return np.einsum("yi,ijc,xj->yxc", weights, grid, weights, optimize=True)


# Signed distances in px, negative inside; dy [h, 1] and dx [1, w] from the centre.


def _rotate(dy, dx, angle):
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * dy + s * dx, c * dx - s * dy


def _polygon(dy, dx, corners, radius, angle):
    """Regular polygon of circumradius `radius`."""
    normals = angle + (np.arange(corners) + 0.5) * 2 * np.pi / corners
    apothem = radius * np.cos(np.pi / corners)
    sides = [np.sin(n) * dy + np.cos(n) * dx for n in normals]
    return np.maximum.reduce([np.asarray(side, np.float32) for side in sides]) - apothem


def _star(dy, dx, radius, angle):
    """Five points; the inner corners at 0.45 of the radius."""
    theta = np.mod(np.arctan2(dy, dx) - angle, 2 * np.pi / 5)
    theta = np.abs(theta - np.pi / 5)  # 0 at the notch between two points, pi/5 at a point
    r = np.hypot(dy, dx)
    inner = np.array([0.45 * radius, 0.0])
    outer = radius * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = outer - inner
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (r * np.cos(theta) - inner[0]) * normal[0] + (r * np.sin(theta) - inner[1]) * normal[1]


def _polyline(dy, dx, points):
    """Distance to the line through `points` [n, 2] (y, x)."""
    nearest = np.full(np.broadcast_shapes(dy.shape, dx.shape), np.inf, np.float32)
    for a, b in itertools.pairwise(points):
        edge = b - a
        t = np.clip(((dy - a[0]) * edge[0] + (dx - a[1]) * edge[1]) / (edge @ edge), 0, 1)
        nearest = np.minimum(nearest, np.hypot(dy - a[0] - t * edge[0], dx - a[1] - t * edge[1]))
    return nearest


def _lattice(dy, dx, half_size, pitch, half_width, angle):
    """Two sets of parallel bars inside a rotated square."""
    u, v = _rotate(dy, dx, angle)
    bars = [np.abs(np.mod(w + pitch / 2, pitch) - pitch / 2) - half_width for w in (u, v)]
    frame = np.maximum(np.abs(u), np.abs(v)) - half_size
    return np.maximum(np.minimum(*bars), frame)


def _lozenge(u, v, long, short):
    return (np.abs(u) / long + np.abs(v) / short - 1) * (long * short / np.hypot(long, short))
