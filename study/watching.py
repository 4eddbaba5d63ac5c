"""What a worker tells those who watch it: a protocol, and one that keeps silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from data.measurements import Measurement
from data.recipes import Recipe, Sampling
from storage.records import Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTrial:
    """A trial in a slot, as far as it has come."""

    number: int
    recipe: Recipe
    sampling: Sampling
    epoch: int
    trained_tokens: int
    loss_nats: float | None
    last: Measurement | None


@dataclass(slots=True, kw_only=True)
class Effort:
    """What a worker has done in one sitting; `padding_share` is of the adapters' training work."""

    slots: int
    trained_tokens: int = 0
    training_seconds: float = 0.0
    asking_seconds: float = 0.0
    padding_share: float | None = None


class Watcher(Protocol):
    """Receives what happens, in order, from the worker's own thread."""

    def trial_started(self, number: int, recipe: Recipe, *, resumed: bool) -> None:
        """Receive that a trial was put in a slot."""

    def trial_measured(self, number: int, measurement: Measurement) -> None:
        """Receive a rung's measurement or a last one."""

    def trial_ended(self, number: int, state: Ending, reason: str | None) -> None:
        """Receive that a trial was told to the study."""

    def stepped(self, running: list[RunningTrial]) -> None:
        """Receive the state of all slots after an optimizer step."""

    def warned(self, problem: str) -> None:
        """Receive a problem that stops nothing, such as an adapter that could not be kept."""

    def stopped_early(self, reason: str) -> None:
        """Receive that the study ends before all its trials were asked, and why."""

    def sitting_ended(self, effort: Effort) -> None:
        """Receive what was done, once nothing runs any more."""


class SilentWatcher:
    """Shows nothing."""

    def trial_started(self, number: int, recipe: Recipe, *, resumed: bool) -> None:
        """Do nothing."""

    def trial_measured(self, number: int, measurement: Measurement) -> None:
        """Do nothing."""

    def trial_ended(self, number: int, state: Ending, reason: str | None) -> None:
        """Do nothing."""

    def stepped(self, running: list[RunningTrial]) -> None:
        """Do nothing."""

    def sitting_ended(self, effort: Effort) -> None:
        """Do nothing."""

    def stopped_early(self, reason: str) -> None:
        """Do nothing."""

    def warned(self, problem: str) -> None:
        """Do nothing."""
