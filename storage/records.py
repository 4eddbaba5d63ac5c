"""What the database holds, as values: studies, trials and measurements with their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from data.measurements import Measurement
from data.recipes import GREEDY, Recipe, Sampling

Purpose = Literal["base", "rung", "final", "confirm"]
Ending = Literal["complete", "pruned", "failed"]
TrialState = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a trial took and how far it came.

    `seconds` and `generated_tokens` of a trial that was interrupted are those of its last sitting.
    `highest_learning_rate` is what the warm-up had reached at `last_epoch`.
    """

    trained_tokens: int
    generated_tokens: int
    seconds: float
    last_epoch: int
    highest_learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementRecord:
    """A stored measurement; `trial` is None for the base, `adapter` a path where one was kept."""

    id: int
    trial: int | None
    purpose: Purpose
    adapter: str | None
    measurement: Measurement
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """An asked trial; `number` is Optuna's, `asked_index` counts asked trials only.

    `reason` says why it was pruned or failed. `measurements` are in order of epoch and, within
    one, of recording. `costs` is None while the trial runs.
    """

    number: int
    asked_index: int
    state: TrialState
    reason: str | None
    recipe: Recipe
    sampling: Sampling
    seed: int
    costs: Costs | None
    measurements: tuple[MeasurementRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SittingRecord:
    """A worker's time at a study, in seconds since 1970 by the database's clock."""

    owner: str
    device: str
    began_at_seconds: float
    seen_at_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A study with everything measured in it; trials are in order of their Optuna numbers.

    `base_measurements` are those of the untouched model, in order of recording.
    """

    name: str
    config: str
    fingerprint: Mapping[str, str]
    slots: int
    seed: int
    created_at: datetime
    base_measurements: tuple[MeasurementRecord, ...]
    trials: tuple[TrialRecord, ...]

    @property
    def ended_trials(self) -> int:
        """Return how many trials have come to an end, whichever."""
        return sum(trial.state != "running" for trial in self.trials)

    @property
    def base(self) -> MeasurementRecord | None:
        """Return the reference: the base's first greedy measurement, or None before it is made."""
        return next(
            (
                record
                for record in self.base_measurements
                if record.purpose == "base" and record.measurement.sampling == GREEDY
            ),
            None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """A study without its measurements; `trials` counts the asked trials by state."""

    name: str
    slots: int
    seed: int
    created_at: datetime
    trials: Mapping[TrialState, int]
