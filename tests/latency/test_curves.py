"""The grid of widths, and times between its points."""

from __future__ import annotations

import pytest

from lightning_coreset.latency.curves import Curve, grid


@pytest.mark.parametrize("width", [1, 2, 3, 7, 16, 20, 64, 96, 100, 512, 3072])
def test_a_grid_has_few_points_on_blocks_of_a_power_of_two(width):
    points = grid(width)

    assert points[-1] == width
    assert list(points) == sorted(set(points))
    assert len(points) <= 13
    step = points[0]
    assert step & (step - 1) == 0 or len(points) == 1
    assert all(point % step == 0 for point in points[:-1])


def test_a_coarser_grid_is_a_part_of_it():
    assert set(grid(96, coarser=1)) < set(grid(96))


def test_groups_of_a_convolution_stay_whole():
    assert all(width % 3 == 0 for width in grid(48, multiple=3))


def test_between_two_points_the_time_is_that_of_the_wider_one():
    curve = Curve((8, 16), (4, 8), (1.0, 2.0, 3.0, 4.0))

    assert curve.at(8, 4) == 1.0
    assert curve.at(8, 5) == 2.0
    assert curve.at(9, 4) == 3.0
    assert curve.at(9, 5) == 4.0


def test_beyond_the_widest_it_grows_in_proportion():
    assert Curve((8,), (), (2.0,)).at(16, 16) == 4.0
    assert Curve((8,), (4,), (2.0,)).at(8, 6) == 3.0
