"""A budget counts epochs, hours with a worker at the study, and the hours of all workers."""

from __future__ import annotations

import pytest

from storage.records import SittingRecord
from study.budget import Budget, Spent, sum_sittings

NOW_HOURS = 20


def sitting(
    began_hours: float, seen_hours: float, *, ended_hours: float | None = None
) -> SittingRecord:
    return SittingRecord(
        id=0,
        owner="somebody:1:",
        device="cpu",
        slots=1,
        began_at_seconds=3600 * began_hours,
        seen_at_seconds=3600 * seen_hours,
        ended_at_seconds=None if ended_hours is None else 3600 * ended_hours,
        state=None,
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
        ([sitting(1, 3, ended_hours=3.5)], 2.5, 2.5),  # it said when it left
        ([sitting(19, NOW_HOURS - 0.01)], 1, 1),  # it is there, and works until now
        ([sitting(19, NOW_HOURS - 0.1)], 0.9, 0.9),  # it has been silent for too long
    ],
)
def test_hours_that_overlap_count_once_and_device_hours_every_time(
    sittings: list[SittingRecord], hours: float, device_hours: float
) -> None:
    spent = sum_sittings(sittings, now_seconds=3600 * NOW_HOURS)
    assert spent.hours == pytest.approx(hours)
    assert spent.device_hours == pytest.approx(device_hours)


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(), None),
        (Budget(epochs=1, hours=2.5, device_hours=4.5), None),  # epochs are reserved beforehand
        (Budget(hours=2), "the budget of 2 hours is used up"),
        (Budget(device_hours=4), "the budget of 4 device hours is used up"),
    ],
)
def test_a_budget_is_used_up_once_it_is_reached(budget: Budget, reason: str | None) -> None:
    assert budget.used_up(Spent(hours=2, device_hours=4)) == reason
