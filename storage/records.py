"""What the database holds, as values: studies, trials and measurements with their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from data.agreement import Agreement
from data.measurements import Floor, Measurement
from data.recipes import GREEDY, Recipe, Sampling

# A "repeat" is a recommended member trained again with a fresh seed, a "yardstick" a recipe that
# is no trial, trained to be compared with.
Purpose = Literal["base", "rung", "final", "confirm", "repeat", "yardstick"]
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
    """A stored measurement; `trial` is None for the base, `adapter` a path where one was kept.

    `repeat` counts, from 1, the trainings with fresh seeds that a repeat or yardstick is one of.
    """

    id: int
    trial: int | None
    purpose: Purpose
    adapter: str | None
    measurement: Measurement
    recorded_at: datetime
    repeat: int = 0


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

    @property
    def searched(self) -> tuple[MeasurementRecord, ...]:
        """Return what the search saw of it, not what was measured after the choice was made."""
        return tuple(kept for kept in self.measurements if kept.purpose in ("rung", "final"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementRecord:
    """How far a judge agrees with the labels of one file, as it was measured for a study.

    `of_study` is over those of the labelled answers that models of the study gave: recall is
    corrected by it alone.
    """

    judge: str
    digest: str
    labelled: int
    agreement: Agreement
    of_study: Agreement
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What a worker does and what it has done in its sitting; sums are over the whole sitting.

    `activity` is in words for people, such as "training". Memory is that of the device, or of the
    machine where that is the device; it and the `load` (the machine's, averaged over a minute) are
    None where they cannot be told. `peak_memory_bytes` is the most that the worker has ever held:
    on the fullest of its GPUs, or in main memory.
    """

    activity: str
    trained_tokens: int
    training_seconds: float
    asking_seconds: float
    memory_bytes: int | None
    memory_limit_bytes: int | None
    load: float | None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SittingRecord:
    """A worker's time at a study, in seconds since 1970 by the database's clock.

    `ended_at_seconds` is None until the worker says that it leaves; one that was killed never
    does. `state` is the last that it gave, None before the first. `id` and `slots` are 0 where
    they are not known. `versions` are those of the packages that the worker ran on, by name.
    """

    owner: str
    device: str
    began_at_seconds: float
    seen_at_seconds: float
    id: int = 0
    slots: int = 0
    ended_at_seconds: float | None = None
    state: WorkerState | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """Who may write about a trial, until when by the database's clock; `owner` None if nobody."""

    trial: int
    owner: str | None
    fence: int
    expires_at_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A study with everything measured in it; trials are in order of their Optuna numbers.

    `base_measurements` belong to no trial: those of the untouched model, and of yardsticks.
    `floors` is empty until they are measured.
    """

    name: str
    config: str
    fingerprint: Mapping[str, str]
    slots: int
    seed: int
    created_at: datetime
    base_measurements: tuple[MeasurementRecord, ...]
    trials: tuple[TrialRecord, ...]
    floors: tuple[Floor, ...] = ()

    @property
    def measurements(self) -> tuple[MeasurementRecord, ...]:
        """Return all measurements, the base's first and then trial by trial."""
        return (
            *self.base_measurements,
            *(kept for trial in self.trials for kept in trial.measurements),
        )

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
