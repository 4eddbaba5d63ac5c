"""A budget counts epochs, hours with a worker at the study, and the hours of all workers."""

from __future__ import annotations

import pytest

from storage.records import SittingRecord
from study.budget import Budget, Spent, sum_sittings


def sitting(began_hours: float, seen_hours: float) -> SittingRecord:
    return SittingRecord(
        owner="somebody",
        device="cpu",
        began_at_seconds=3600 * began_hours,
        seen_at_seconds=3600 * seen_hours,
    )


@pytest.mark.parametrize(
    ("sittings", "hours", "device_hours"),
    [
        ([], 0, 0),
        ([sitting(1, 3)], 2, 2),
        ([sitting(1, 3), sitting(5, 6)], 3, 3),  # the pause between is not counted
        ([sitting(1, 3), sitting(2, 4)], 3, 4),  # two at once
        ([sitting(1, 9), sitting(2, 4), sitting(3, 5)], 8, 12),  # one around the others
        ([sitting(5, 6), sitting(1, 3)], 3, 3),  # in any order
    ],
)
def test_hours_that_overlap_count_once_and_device_hours_every_time(
    sittings: list[SittingRecord], hours: float, device_hours: float
) -> None:
    assert sum_sittings(sittings, epochs=7) == Spent(
        epochs=7, hours=hours, device_hours=device_hours
    )


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(), None),
        (Budget(epochs=11, hours=2.5, device_hours=4.5), None),
        (Budget(epochs=10), "the budget of 10 epochs is used up"),
        (Budget(hours=2), "the budget of 2 hours is used up"),
        (Budget(device_hours=4), "the budget of 4 device hours is used up"),
    ],
)
def test_a_budget_is_used_up_once_it_is_reached(budget: Budget, reason: str | None) -> None:
    assert budget.used_up(Spent(epochs=10, hours=2, device_hours=4)) == reason
