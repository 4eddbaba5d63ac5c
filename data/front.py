"""The front of trade-offs between recall and knowledge loss, and how much of the plane it rules.

A point is (recall, knowledge loss): recall is higher-is-better, loss is lower-is-better. A point
with a NaN was not measured; it is never on the front and rules nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Return the positions of the points that no other point beats, by falling recall.

    A point beats another that is no better in both objectives and worse in one. Of equal points
    the first stands for all.
    """
    measured = [i for i, point in enumerate(points) if not any(map(math.isnan, point))]
    front: list[int] = []
    for i in sorted(measured, key=lambda i: (-points[i][0], points[i][1], i)):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the area that the points dominate within the reference point; higher is better.

    A point counts as far as it has more recall and less loss than `reference`; without such a
    point the area is 0.

    Raises:
        ValueError: If the reference point is not finite.
    """
    if not all(map(math.isfinite, reference)):
        raise ValueError(f"reference: {reference} is not allowed; both numbers must be finite")
    better = [point for point in points if point[0] > reference[0] and point[1] < reference[1]]
    area = 0.0
    loss_above = reference[1]
    for recall, loss in (better[i] for i in non_dominated(better)):  # by falling recall and loss
        area += (recall - reference[0]) * (loss_above - loss)
        loss_above = loss
    return area


def hypervolume_contributions(points: Sequence[Point], reference: Point) -> list[float]:
    """Return for each point the area that would be lost without it, 0 off the front.

    Equal points stand in for each other: each contributes 0.

    Raises:
        ValueError: If the reference point is not finite.
    """
    whole = hypervolume(points, reference)
    contributions = [0.0] * len(points)
    for i in non_dominated(points):
        # What a member ruled may pass to points off the front, so they must stay.
        others = [*points[:i], *points[i + 1 :]]
        contributions[i] = max(0.0, whole - hypervolume(others, reference))
    return contributions
