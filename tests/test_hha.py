"""HHA of rooms made of planes, where disparity, height and angle are known."""

import numpy as np
import pytest

from deeplab_jax.data import hha

CAMERA = hha.Camera(fx=130.0, fy=128.0, cx=80.5, cy=61.0)
SIZE = (120, 160)
CAMERA_HEIGHT, ROOM_HEIGHT, DISTANCE = 1.4, 2.5, 5.0


def room(tilt: float, roll: float = 0.0):
    """(depth, which of floor 0, ceiling 1, wall 2 each pixel sees, down) of a tilted camera."""
    rays = hha.points(np.ones(SIZE), CAMERA)
    down = np.array([0, np.cos(tilt), np.sin(tilt)])
    ahead = np.array([0, -np.sin(tilt), np.cos(tilt)])
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    down, ahead = turn @ down, turn @ ahead
    planes = [(down, CAMERA_HEIGHT), (-down, ROOM_HEIGHT - CAMERA_HEIGHT), (ahead, DISTANCE)]
    along = [
        np.divide(d, rays @ n, where=rays @ n > 0, out=np.full(SIZE, np.inf)) for n, d in planes
    ]
    return np.min(along, axis=0), np.argmin(along, axis=0), down


@pytest.mark.parametrize(("tilt", "roll"), [(0.0, 0.0), (20.0, 0.0), (-12.0, 5.0), (25.0, -8.0)])
def test_a_room_seen_by_a_tilted_camera(tilt, roll):
    depth, what, down = room(*np.radians([tilt, roll]))
    found = hha.gravity(hha.normals(depth, CAMERA, hha.COARSE))
    assert np.degrees(np.arccos(min(1.0, found @ down))) < 1
    encoded = hha.encode(depth, CAMERA)
    assert encoded.dtype == np.uint8
    disparity, height, angle = np.moveaxis(encoded.astype(float), -1, 0)
    np.testing.assert_allclose(disparity, np.clip(310 / depth, 0, 255), atol=0.51)
    true_height = 100 * (CAMERA_HEIGHT - hha.points(depth, CAMERA) @ down)
    if (what == 0).any():  # the floor is seen, and is the ground
        inside = true_height < 250
        np.testing.assert_allclose(height[inside], true_height[inside], atol=4)
    # Away from edges, where a window holds two planes, angles are those of the planes.
    edge = np.zeros(SIZE, bool)
    edge[1:] |= what[1:] != what[:-1]
    edge[:, 1:] |= what[:, 1:] != what[:, :-1]
    rows, columns = np.nonzero(edge)
    y, x = np.indices(SIZE)
    near = np.zeros(SIZE, bool)
    for row, column in zip(rows, columns):
        near |= (abs(y - row) <= hha.FINE + 1) & (abs(x - column) <= hha.FINE + 1)
    wanted = np.choose(what, [38, 218, 128])
    assert {38, 128} <= set(wanted[~near].tolist()) or tilt < 0
    np.testing.assert_allclose(angle[~near], wanted[~near], atol=1.01)


def test_where_no_floor_is_seen_the_camera_is_taken_to_be_at_its_usual_height():
    encoded = hha.encode(np.full(SIZE, 0.9), CAMERA)
    row = round(CAMERA.cy)
    assert (encoded[row, :, 1] == 130).all()  # the horizon
    assert (encoded[..., 0] == 255).all()  # nearer than 1 m counts as 1 m, and 310 is cut off
    assert (encoded[..., 2] == 128).all()


def test_normals_point_away_and_are_none_where_nothing_is_measured():
    depth = np.full((30, 40), 2.0)
    missing = np.zeros((30, 40), bool)
    missing[:, :20] = True
    depth[:, :20] = 77.0  # filled in badly: not to be looked at
    found = hha.normals(depth, CAMERA, 3, missing)
    assert np.isnan(found[:, :15]).all()
    np.testing.assert_allclose(found[:, 20:], np.broadcast_to([0, 0, 1.0], (30, 20, 3)), atol=1e-9)
    assert (hha.encode(depth, CAMERA, missing)[:, :15, 2] == 0).all()


def test_planes_are_found_through_noise():
    depth, what, down = room(np.radians(15))
    noise = np.random.default_rng(0).normal(0, 2e-3, SIZE)
    noisy = 1 / (1 / depth + noise)
    found = hha.gravity(hha.normals(noisy, CAMERA, hha.COARSE))
    assert np.degrees(np.arccos(found @ down)) < 1.5
    angle = hha.encode(noisy, CAMERA)[..., 2].astype(float)
    assert abs(np.median(angle[what == 0]) - 38) < 6  # noise adds to an angle of 0 only
    assert abs(np.median(angle[what == 2]) - 128) < 2
