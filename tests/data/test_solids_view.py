"""The renderer of solids and their shapes, against scipy's polyhedra and against a slow march."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial import ConvexHull, HalfspaceIntersection

from capsrepro.data.solids import FRONT_DEG
from capsrepro.data.solids_shapes import DRAWS, SHAPES, SIZES_PX, box, shape_solid
from capsrepro.data.solids_view import (
    LIGHTINGS,
    SIDE_PX,
    STEREO_DEG,
    brightness,
    camera_axes,
    cos_sin,
    face_map,
)

NEARLY_ONE = 1 - 2.0**-24
EXTREMES = [[draw] * DRAWS for draw in (0.0, 0.5, NEARLY_ONE)]
VIEWS = [(-60, 30), (10, 70), (93, 45), (217, 50)]


def random_solid(shape, seed=0):
    return shape_solid(shape, np.random.default_rng(seed).random(DRAWS).tolist())


def corners(part, inside):
    """Corners of a part, given a point within it, by scipy."""
    halfspaces = np.array([[*normal, -offset] for *normal, offset in part])
    return HalfspaceIntersection(halfspaces, np.asarray(inside, float)).intersections


def point_within(part):
    """Somewhere in a part: the mean of those points of a fine lattice that are inside."""
    line = np.arange(-16, 16, 0.5) + 0.25
    points = np.stack(np.meshgrid(line, line, line), -1).reshape(-1, 3)
    planes = np.array(part)
    return points[(points @ planes[:, :3].T < planes[:, 3]).all(1)].mean(0)


def turned(solid, degrees):
    """The solid itself turned about the vertical axis, its front to the right."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return tuple(
        tuple((c * x - s * y, s * x + c * y, z, offset) for x, y, z, offset in part)
        for part in solid
    )


def marched(solid, azimuth, elevation, rays):
    """Faces by walking along rays in steps of 0.01 pixels until a point is inside of a part."""
    forward, right, up = map(np.array, camera_axes(azimuth, elevation))
    steps = np.arange(-26, 26, 0.01)
    found = []
    for row, column in rays:
        start = right * ((column + 0.5) / 2 - 24) + up * (24 - (row + 0.5) / 2)
        points = start + steps[:, None] * forward
        best, first = 0, 1
        earliest = len(steps)
        for part in solid:
            planes = np.array(part)
            beyond = points @ planes[:, :3].T - planes[:, 3]
            inside = np.flatnonzero((beyond <= 0).all(1))
            if inside.size and inside[0] < earliest:
                earliest = inside[0]
                best = first + int(beyond[earliest].argmax())
            first += len(part)
        found.append(best)
    return np.array(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_meet_the_face_that_a_walk_along_them_meets(shape):
    solid = random_solid(shape)
    rays = np.random.default_rng(1).integers(16, 80, (150, 2))
    for azimuth, elevation in VIEWS[:2]:
        shown = face_map(solid, azimuth, elevation)[tuple(rays.T)]
        walked = marched(solid, azimuth, elevation, rays)
        assert np.mean(shown == walked) > 0.98  # where faces meet, a step decides
        assert 0.2 < np.mean(shown > 0) < 1


@pytest.mark.parametrize("shape", SHAPES)
def test_outline_of_a_part_is_the_hull_of_its_projected_corners(shape):
    for part in random_solid(shape):
        points = corners(part, point_within(part))
        for azimuth, elevation in VIEWS:
            _, right, up = map(np.array, camera_axes(azimuth, elevation))
            hull = ConvexHull(np.stack([points @ right, points @ up], 1))
            pixels = np.count_nonzero(face_map((part,), azimuth, elevation)) / 4
            # Half a sample of play along the outline; scipy calls the outline of a plane `area`.
            assert abs(pixels - hull.volume) < 0.25 * 0.5 * hull.area


def test_outline_lies_where_its_corners_are():
    (part,) = random_solid("roof")
    points = corners(part, point_within(part))
    for azimuth, elevation in VIEWS:
        _, right, up = map(np.array, camera_axes(azimuth, elevation))
        rows, columns = np.nonzero(face_map((part,), azimuth, elevation))
        across, high = points @ right, points @ up
        expected = [24 - high.max(), 24 - high.min(), 24 + across.min(), 24 + across.max()]
        seen = [rows.min() / 2, rows.max() / 2 + 0.5, columns.min() / 2, columns.max() / 2 + 0.5]
        # A pointed corner may slip through between two rays.
        np.testing.assert_allclose(seen, expected, atol=1.01)


@pytest.mark.parametrize("azimuth", [-40, 20, 180])
def test_turning_the_camera_is_turning_the_solid_back(azimuth):
    solid = random_solid("cross")
    by_camera, by_table = face_map(solid, azimuth, 40), face_map(turned(solid, -azimuth), 0, 40)
    assert np.mean(by_camera != by_table) < 0.002
    np.testing.assert_allclose(
        brightness(solid, azimuth).astype(int), brightness(turned(solid, -azimuth), 0), atol=1
    )


def test_camera_at_zero_sees_front_and_top_and_one_to_the_right_the_right_side():
    cube = (box((-8, 8), (-8, 8), (-8, 8)),)
    front, back, right, left, top, bottom = range(1, 7)
    straight = face_map(cube, 0, 30)
    assert set(np.unique(straight)) == {0, front, top}
    assert np.nonzero(straight == top)[0].max() < np.nonzero(straight == front)[0].min()
    beside = face_map(cube, 30, 30)
    assert set(np.unique(beside)) == {0, front, top, right}
    assert np.nonzero(beside == right)[1].mean() > np.nonzero(beside == front)[1].mean()
    assert set(np.unique(face_map(cube, 150, -30))) == {0, back, bottom, right}
    assert set(np.unique(face_map(cube, 270, 0))) == {0, left}


def test_what_is_near_lies_further_right_for_the_left_camera():
    near = (box((18, 20), (-1, 1), (-1, 1)),)
    left, right = (np.nonzero(face_map(near, beside, 30))[1].mean() for beside in STEREO_DEG)
    # 19 pixels before the middle, 6° between the cameras, two samples per pixel.
    assert left - right == pytest.approx(2 * 19 * 2 * math.sin(math.radians(3)), abs=0.6)


def test_the_nearer_part_hides_the_farther():
    far, near = box((-9, -7), (-5, 5), (-5, 5)), box((7, 9), (-3, 3), (-3, 3))
    assert face_map((far, near), 0, 0)[48, 48] == 7
    assert face_map((near, far), 0, 0)[48, 48] == 1
    assert face_map((far, near), 180, 0)[48, 48] == 2


def test_a_ray_within_a_plane_passes_or_stays_inside():
    """Seen from straight ahead, no ray meets a side, and the outline is the front's."""
    cube = (box((-8, 8), (-6, 6), (-5, 5)),)
    rows, columns = np.nonzero(face_map(cube, 0, 0) == 1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (38, 57, 36, 59)
    assert len(rows) == 20 * 24 == np.count_nonzero(face_map(cube, 0, 0))


def test_lambert():
    """Full at the lamp, by the cosine beside it, none behind; and ambient light everywhere."""
    for row, light in enumerate(LIGHTINGS):
        towards, *_ = camera_axes(50 + light.azimuth_deg, light.elevation_deg)
        facing = tuple(-entry for entry in towards)
        _, aside, upwards = camera_axes(50 + light.azimuth_deg, light.elevation_deg)
        sixty = tuple(0.5 * f + math.sqrt(0.75) * a for f, a in zip(facing, aside, strict=True))
        normals = [facing, sixty, upwards, towards]
        levels = brightness((tuple((*normal, 1.0) for normal in normals),), 50)[row]
        shares = [light.ambient / 2, *(light.ambient + light.lamp * c for c in (1, 0.5, 0, 0))]
        np.testing.assert_allclose(levels, np.array(shares) * 255, atol=0.51)


def test_every_face_stands_out_from_the_background_under_every_lighting():
    assert len(set(LIGHTINGS)) == len(LIGHTINGS) == 6
    levels = brightness(random_solid("podium"), 70)
    assert (levels[:, 1:] > 1.9 * levels[:, :1]).all()
    assert levels.max() < 255
    assert len({row.tobytes() for row in levels}) == 6


def test_no_library_can_round_a_cosine_to_another_point_of_the_grid():
    for degrees in range(360):
        for value, exact in zip(
            cos_sin(degrees),
            (math.cos(math.radians(degrees)), math.sin(math.radians(degrees))),
            strict=True,
        ):
            assert (value * 2**20).is_integer()
            assert abs(value - exact) * 2**20 < 0.499


@pytest.mark.parametrize("draws", EXTREMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_the_same_boxes(shape, draws):
    solid = shape_solid(shape, draws)
    reached = np.concatenate([corners(part, point_within(part)) for part in solid])
    sizes = [low + (high - low) * draw for (low, high), draw in zip(SIZES_PX, draws, strict=False)]
    np.testing.assert_allclose(reached.max(0), np.array(sizes) / 2, atol=1e-6)
    np.testing.assert_allclose(reached.min(0), -np.array(sizes) / 2, atol=1e-6)
    for part in solid:
        normals = np.array(part)[:, :3]
        np.testing.assert_allclose((normals**2).sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("draws", EXTREMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_turn_looks_the_same_and_nothing_leaves_the_frame(shape, draws):
    solid = shape_solid(shape, draws)
    pictures = []
    for azimuth in range(0, 360, 20):
        heading = azimuth - FRONT_DEG
        faces = face_map(solid, heading, 30)
        pictures.append(brightness(solid, heading)[2][faces].astype(int))
        for edge in (faces[:4], faces[-4:], faces[:, :4], faces[:, -4:]):
            assert not edge.any()
    for first, second in zip(*np.triu_indices(18, 1), strict=True):
        # A bridge's two ends differ by no more than a slit beside a pillar.
        assert np.count_nonzero(np.abs(pictures[first] - pictures[second]) > 8) > 12


def test_draws_change_proportions():
    assert SIDE_PX == 48
    for shape in SHAPES:
        base = face_map(shape_solid(shape, [0.5] * DRAWS), 40, 40) > 0
        for place in range(DRAWS):
            draws = [0.5] * DRAWS
            draws[place] = 0.0
            # A bridge, a channel and a roof leave the last number alone.
            same = np.array_equal(base, face_map(shape_solid(shape, draws), 40, 40) > 0)
            assert not same or (place == DRAWS - 1 and shape in ("bridge", "channel", "roof"))
