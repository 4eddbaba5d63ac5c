"""What a study may take in all, over every sitting and worker, and when that is used up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage.records import SittingRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a study has taken so far: trained epochs, and hours with a worker at it."""

    epochs: int
    hours: float
    device_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most a study may take; None is no bound.

    `hours` counts while at least one worker runs, `device_hours` those of all workers together.
    """

    epochs: int | None = None
    hours: float | None = None
    device_hours: float | None = None

    @property
    def is_bounded(self) -> bool:
        """Return whether there is any bound."""
        return self != Budget()

    def used_up(self, spent: Spent) -> str | None:
        """Return which bound is reached, in words, or None."""
        if self.epochs is not None and spent.epochs >= self.epochs:
            return f"the budget of {self.epochs} epochs is used up"
        if self.hours is not None and spent.hours >= self.hours:
            return f"the budget of {self.hours:g} hours is used up"
        if self.device_hours is not None and spent.device_hours >= self.device_hours:
            return f"the budget of {self.device_hours:g} device hours is used up"
        return None


def sum_sittings(sittings: Sequence[SittingRecord], *, epochs: int) -> Spent:
    """Return what sittings and their trials took; hours that overlap count once as hours.

    Args:
        sittings: All of a study.
        epochs: Trained by all of its trials.
    """
    spans = sorted((each.began_at_seconds, each.seen_at_seconds) for each in sittings)
    covered, until = 0.0, float("-inf")
    for began, seen in spans:
        covered += max(0.0, seen - max(began, until))
        until = max(until, seen)
    device = sum(seen - began for began, seen in spans)
    return Spent(epochs=epochs, hours=covered / 3600, device_hours=device / 3600)
