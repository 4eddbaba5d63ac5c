"""The front and its hypervolume, by hand, by counting grid cells, and against Optuna's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from data.front import Point, hypervolume, hypervolume_contributions, non_dominated

_GRID = 10
_grid_values = st.integers(0, _GRID).map(lambda tenths: tenths / _GRID)
_points = st.lists(st.tuples(_grid_values, _grid_values), max_size=12)
_REFERENCE = (0.1, 0.5)


def _beats(first: Point, second: Point) -> bool:
    return first != second and first[0] >= second[0] and first[1] <= second[1]


def _area_by_counting_cells(points: list[Point], reference: Point) -> float:
    corners = [
        (recall / _GRID, loss / _GRID)
        for recall in range(round(reference[0] * _GRID) + 1, _GRID + 1)
        for loss in range(round(reference[1] * _GRID))
    ]
    covered = sum(
        any(recall <= point[0] and point[1] <= loss for point in points)
        for recall, loss in corners
    )
    return covered / _GRID**2


def test_only_points_that_nothing_beats_are_on_the_front() -> None:
    points = [(0.9, 0.2), (0.5, 0.1), (0.5, 0.2), (0.0, 0.0), (0.8, 0.3), (0.9, 0.4)]

    assert non_dominated(points) == [0, 1, 3]


def test_of_equal_points_the_first_is_kept() -> None:
    assert non_dominated([(0.2, 0.3), (0.7, 0.1), (0.7, 0.1)]) == [1]


def test_points_that_were_not_measured_are_left_out() -> None:
    points = [(math.nan, 0.0), (0.5, math.nan), (0.4, 0.1), (math.nan, math.nan)]

    assert non_dominated(points) == [2]
    assert hypervolume(points, _REFERENCE) == pytest.approx(0.3 * 0.4)
    assert hypervolume_contributions(points, _REFERENCE) == pytest.approx([0, 0, 0.12, 0])


def test_no_points_make_no_front_and_no_area() -> None:
    assert non_dominated([]) == []
    assert hypervolume([], _REFERENCE) == 0
    assert hypervolume_contributions([], _REFERENCE) == []


def test_the_area_of_two_steps_by_hand() -> None:
    # Above recall 0.1 and below loss 0.5: (0.9 - 0.1) * (0.5 - 0.3) = 0.16 of the first, and below
    # its loss (0.6 - 0.1) * (0.3 - 0.1) = 0.10 of the second. Alone they rule 0.16 and 0.20, so
    # they share 0.5 * 0.2 = 0.10.
    points = [(0.9, 0.3), (0.6, 0.1)]

    assert hypervolume(points, _REFERENCE) == pytest.approx(0.26)
    assert hypervolume_contributions(points, _REFERENCE) == pytest.approx([0.06, 0.10])


def test_a_point_on_or_beyond_the_reference_rules_nothing() -> None:
    assert hypervolume([(0.1, 0.0), (0.9, 0.5), (0.0, 0.0), (1.0, 0.9)], _REFERENCE) == 0


def test_a_reference_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        hypervolume([(0.5, 0.1)], (math.nan, 0.5))
    with pytest.raises(ValueError, match="reference"):
        hypervolume_contributions([(0.5, 0.1)], (0.1, math.inf))


@given(_points)
def test_front_members_are_not_beaten_and_all_others_are_or_are_copies(
    points: list[Point],
) -> None:
    front = non_dominated(points)

    for i, point in enumerate(points):
        beaten = any(_beats(other, point) for other in points)
        copied = points.index(point) < i
        assert (i in front) == (not beaten and not copied)


@given(_points)
def test_the_area_equals_the_counted_cells_and_optunas(points: list[Point]) -> None:
    area = hypervolume(points, _REFERENCE)

    assert area == pytest.approx(_area_by_counting_cells(points, _REFERENCE))
    inside = [(-r, loss) for r, loss in points if r > _REFERENCE[0] and loss < _REFERENCE[1]]
    if inside:
        reference = np.array([-_REFERENCE[0], _REFERENCE[1]])
        assert area == pytest.approx(compute_hypervolume(np.array(inside), reference))


@given(_points)
def test_a_contribution_is_what_the_area_loses_without_the_point(points: list[Point]) -> None:
    whole = hypervolume(points, _REFERENCE)

    for i, contribution in enumerate(hypervolume_contributions(points, _REFERENCE)):
        rest = hypervolume(points[:i] + points[i + 1 :], _REFERENCE)
        assert contribution == pytest.approx(whole - rest, abs=1e-12)
