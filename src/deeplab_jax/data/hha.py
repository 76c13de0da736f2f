"""HHA: depth as horizontal disparity, height above the ground and angle with gravity.

S. Gupta, R. Girshick, P. Arbelaez, J. Malik, "Learning rich features from RGB-D images for object
detection and segmentation", arXiv 1407.5736; the constants are those of the code released with it.

Points are (x right, y down, z forward) in metres, the camera at the origin.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

NEAREST = 1.0  # m; what is nearer has the disparity of this
DISPARITY = 310.0  # over depth in m
# The ground is the lowest point; unless that is so near below the camera that no floor is seen.
LEAST_CAMERA_HEIGHT, USUAL_CAMERA_HEIGHT = 0.9, 1.3  # m
ANGLE_OFFSET = 38  # puts walls (90 degrees) at 128
# Radii in px of the windows that planes are fitted to: for the answer, and to find gravity.
FINE, COARSE = 3, 10
# Normals within so many degrees of gravity, or of the horizon, tell where it is: first, then.
GRAVITY_ANGLES, GRAVITY_STEPS = (45, 15), 5


class Camera(NamedTuple):
    """A pinhole camera: focal lengths and principal point in px; the first pixel's centre is 0."""

    fx: float
    fy: float
    cx: float
    cy: float


def encode(depth: np.ndarray, camera: Camera, missing: np.ndarray | None = None) -> np.ndarray:
    """[H, W, 3] uint8: disparity, height in cm, angle in degrees + 38 (floor 38, wall 128).

    Args:
      depth: [H, W] in m, above 0 everywhere.
      camera: that saw it.
      missing: [H, W] bool, where depth was filled in and no plane is fitted to it.
    """
    where = points(depth, camera)
    down = gravity(normals(depth, camera, COARSE, missing))
    height = -(where @ down)
    lowest = height.min()
    if lowest > -LEAST_CAMERA_HEIGHT:
        lowest = -USUAL_CAMERA_HEIGHT
    cosine = normals(depth, camera, FINE, missing) @ down
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1))) + ANGLE_OFFSET
    channels = [
        DISPARITY / np.maximum(depth, NEAREST),
        100 * (height - lowest),
        np.nan_to_num(angle),  # no normal: 0, which no plane has
    ]
    return np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)


def points(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """[H, W, 3]: the point that each pixel sees, in the unit of `depth` [H, W]."""
    return _rays(depth.shape, camera) * depth[..., None]


def normals(
    depth: np.ndarray, camera: Camera, radius: int, missing: np.ndarray | None = None
) -> np.ndarray:
    """[H, W, 3] unit normals that point away from the camera; NaN where too few pixels are seen.

    Of each window of 2 radius + 1 px the plane n·p = 1 is fitted by least squares to inverse depth,
    n·ray = 1 / depth, whose noise is nearly the same near and far.
    """
    seen = np.ones(depth.shape) if missing is None else 1.0 - missing
    rays = _rays(depth.shape, camera)
    size = 2 * radius + 1

    def total(values):
        return ndimage.uniform_filter(values * seen, size, mode="constant") * size**2

    squares = np.empty((*depth.shape, 3, 3))
    for i in range(3):
        for j in range(i, 3):
            squares[..., i, j] = squares[..., j, i] = total(rays[..., i] * rays[..., j])
    target = np.stack([total(rays[..., i] / depth) for i in range(3)], axis=-1)
    enough = total(np.ones(depth.shape)) > size + 0.5  # so many are never on one line
    squares[~enough] = np.eye(3)
    found = np.linalg.solve(squares, target[..., None])[..., 0]
    found[~enough] = np.nan
    # n·p = 1 at the plane itself: n points away from the camera already.
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def gravity(normals: np.ndarray) -> np.ndarray:
    """[3] the unit vector down, of normals [H, W, 3] (NaN: none), for a camera held about upright.

    Repeatedly the direction that floors and ceilings are most along and walls most across: those
    that the last direction tells apart.
    """
    known = normals[np.isfinite(normals).all(-1)]
    down = np.array([0.0, 1.0, 0.0])
    for angle in np.radians(GRAVITY_ANGLES):
        for _ in range(GRAVITY_STEPS):
            along = np.abs(known @ down)
            floors, walls = known[along > np.cos(angle)], known[along < np.sin(angle)]
            # A wall alone leaves down anywhere in it: then it is where the last direction points.
            last = 1e-3 * len(known) * np.outer(down, down)
            _, vectors = np.linalg.eigh(walls.T @ walls - floors.T @ floors - last)
            down = vectors[:, 0] * np.sign(vectors[:, 0] @ down)
    return down


def _rays(shape: tuple[int, int], camera: Camera) -> np.ndarray:
    """[H, W, 3]: the points at depth 1."""
    y, x = np.indices(shape, dtype=float)
    return np.stack(
        [(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(shape)], axis=-1
    )
