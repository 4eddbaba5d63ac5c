"""What a study may take in all, over every sitting and worker, and when that is used up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.workforce import is_there
from storage.records import SittingRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a study has taken so far: hours with a worker at it, and hours of all workers."""

    hours: float
    device_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most a study may take; None is no bound.

    `epochs` are those of all trials together: a trial is asked only where the most epochs that it
    may take are left, and what a pruned one did not take is there for others, so that the bound is
    never exceeded. `hours` counts while at least one worker runs, `device_hours` those of all
    workers together; running trials are saved when they are used up.
    """

    epochs: int | None = None
    hours: float | None = None
    device_hours: float | None = None

    def used_up(self, spent: Spent) -> str | None:
        """Return which bound in hours is reached, in words, or None."""
        if self.hours is not None and spent.hours >= self.hours:
            return f"the budget of {self.hours:g} hours is used up"
        if self.device_hours is not None and spent.device_hours >= self.device_hours:
            return f"the budget of {self.device_hours:g} device hours is used up"
        return None


def sum_sittings(sittings: Sequence[SittingRecord], *, now_seconds: float) -> Spent:
    """Return what sittings took; hours that overlap count once as hours.

    Args:
        sittings: All of a study.
        now_seconds: By the database's clock; workers that are there count until then.
    """
    spans = sorted((each.began_at_seconds, _until(each, now_seconds)) for each in sittings)
    covered, until = 0.0, float("-inf")
    for began, seen in spans:
        covered += max(0.0, seen - max(began, until))
        until = max(until, seen)
    device = sum(seen - began for began, seen in spans)
    return Spent(hours=covered / 3600, device_hours=device / 3600)


def _until(sitting: SittingRecord, now_seconds: float) -> float:
    if sitting.ended_at_seconds is not None:
        return sitting.ended_at_seconds
    return now_seconds if is_there(sitting, now_seconds) else sitting.seen_at_seconds
