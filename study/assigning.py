"""Gives a worker its next trial: one that a dead worker left, or a new one within the bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import optuna
from optuna.trial import FrozenTrial, TrialState

from analysis.points import Reference
from data.recipes import Recipe, Sampling
from search_spaces.recipe_space import RecipeSpace, suggest_recipe
from search_spaces.sampling_space import SamplingSpace, suggest_sampling
from search_spaces.settings import bounds
from storage.database import StudyStorage
from storage.leases import Lease, owner_is_dead
from storage.reader import (
    list_studies,
    read_clock,
    read_leases,
    read_sittings,
    read_study,
    sum_reserved_epochs,
)
from storage.recorder import Recorder
from storage.records import TrialRecord
from study.asked_trials import asked_index, asked_trials
from study.budget import Budget, sum_sittings
from study.goal import Goal
from study.presence import Presence
from study.seeds import derive_seed
from study.stopping import failures_in_a_row, is_flat

FAILURE = "failure"  # the user attribute with the reason why a trial failed


class TooManyFailures(RuntimeError):
    """One trial after the other failed; the message holds the last reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much a study asks for in all: trials, a budget, and when it has seen enough.

    `trials` is the total of asked trials. No trial is asked any more once `flat_trials` in a row
    have brought nothing, and the study stops with an error once `failures_in_a_row` have failed.
    """

    trials: int
    budget: Budget = field(default_factory=Budget)
    flat_trials: int | None = None
    failures_in_a_row: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A trial that this worker holds; `record` is what an earlier worker recorded of it."""

    trial: optuna.Trial
    lease: Lease
    recipe: Recipe
    sampling: Sampling
    asked_index: int
    seed: int
    record: TrialRecord | None = None
    is_taken_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingToDo:
    """There is no trial to be had.

    `others_run` says that other workers hold some, so that there may be one later. `reason` says
    why the study ends before all its trials were asked; None if all were.
    """

    others_run: bool
    reason: str | None = None


class Assigner:
    """Hands out the trials of a study to one worker.

    Workers take turns, so that the bounds are kept exactly and every trial is asked with all
    others known.
    """

    def __init__(
        self,
        *,
        study: optuna.Study,
        storage: StudyStorage,
        recorder: Recorder,
        presence: Presence,
        bounds: Bounds,
        space: RecipeSpace,
        samplings: SamplingSpace,
        goal: Goal,
        reference: Reference,
        seed: int,
        tell_recorded: Callable[[TrialRecord], None],
    ) -> None:
        """Prepare; `tell_recorded` tells Optuna of a trial whose end was recorded only."""
        self._study = study
        self._storage = storage
        self._recorder = recorder
        self._presence = presence
        self._bounds = bounds
        self._space = space
        self._samplings = samplings
        self._goal = goal
        self._reference = reference
        self._seed = seed
        self._tell_recorded = tell_recorded
        self._began = datetime.now()  # Optuna notes the local time at which trials end

    def next(self, own: Sequence[int]) -> Assignment | NothingToDo:
        """Return a trial to run, or why there is none.

        Args:
            own: The numbers of the trials that this worker runs.

        Raises:
            TooManyFailures: If one trial after the other has failed since this worker began.
        """
        with self._presence.lock("asking"):
            trials = self._study.get_trials(deepcopy=False)
            free = self._free_trials(trials, own)
            left = self._take_up(free)
            if left is not None:
                return left
            others_run = len(_running(trials, own)) > len(free)
            asked = asked_trials(trials)
            if len(asked) >= self._bounds.trials:
                return NothingToDo(others_run=others_run)
            self._check_failures(asked)
            reason = self._why_no_more(asked)
            if reason is not None:
                return NothingToDo(others_run=others_run, reason=reason)
            trial = self._study.ask()
            lease = self._presence.acquire(trial.number)
            if lease is None:  # somebody mends the study, and saw it before it was held
                return NothingToDo(others_run=True)
            return self._assign(trial, lease)

    def why_used_up(self) -> str | None:
        """Return why the budget allows no more time, or None."""
        budget, name = self._bounds.budget, self._study.study_name
        if budget.hours is None and budget.device_hours is None:
            return None
        sittings = read_sittings(self._storage, name)
        return budget.used_up(sum_sittings(sittings, now_seconds=read_clock(self._storage)))

    def others_run(self, own: Sequence[int]) -> bool:
        """Return whether other workers hold trials that have not ended."""
        trials = self._study.get_trials(deepcopy=False)
        return len(_running(trials, own)) > len(self._free_trials(trials, own))

    def _why_no_more(self, asked: Sequence[FrozenTrial]) -> str | None:
        flat = self._bounds.flat_trials
        if flat is not None and is_flat(asked, self._goal, self._reference, flat):
            return f"the last {flat} trials brought nothing"
        epochs = self._bounds.budget.epochs
        if epochs is None:
            return None
        most = int(max(bounds(self._space.epochs)))
        # Before the sum, so that a trial that is recorded in between counts twice, not never.
        unrecorded = self._count_unrecorded(asked)
        reserved = sum_reserved_epochs(self._storage, self._study.study_name)
        left = epochs - reserved - most * unrecorded
        if left >= most:
            return None
        return (
            f"the budget of {epochs} epochs has {max(0, left)} left, and a trial may take {most}; "
            "a larger one lets the study go on"
        )

    def _count_unrecorded(self, asked: Sequence[FrozenTrial]) -> int:
        """Return how many trials were asked by workers that died before they recorded them.

        One whose end was recorded, but not told yet, counts for a moment too.
        """
        running = sum(trial.state == TrialState.RUNNING for trial in asked)
        name = self._study.study_name
        recorded = [s.trials["running"] for s in list_studies(self._storage) if s.name == name]
        return max(0, running - sum(recorded))

    def _check_failures(self, asked: Sequence[FrozenTrial]) -> None:
        number = self._bounds.failures_in_a_row
        failed = failures_in_a_row(asked, since=self._began)
        if len(failed) >= number:
            reason = failed[-1].user_attrs.get(FAILURE, "no reason was recorded")
            raise TooManyFailures(
                f"{len(failed)} trials in a row have failed, the last one (trial "
                f"{failed[-1].number}) because: {reason}. Nothing more is asked; narrow the space "
                "or mend the cause, and run the same command again"
            )

    def _take_up(self, free: Sequence[FrozenTrial]) -> Assignment | None:
        """Return one of the trials that nobody holds; tell those that had only to be told."""
        for frozen in free:
            lease = self._presence.acquire(frozen.number)
            if lease is None:
                continue
            # Read now that nobody else can end it: another worker may have, since it was free.
            record = self._record_of(frozen.number)
            if record is None or record.state == "running":
                trial = optuna.Trial(self._study, frozen._trial_id)
                return self._assign(trial, lease, record=record, is_taken_up=True)
            self._tell_recorded(record)
            self._presence.release(lease)
        return None

    def _record_of(self, number: int) -> TrialRecord | None:
        trials = read_study(self._storage, self._study.study_name).trials
        return next((trial for trial in trials if trial.number == number), None)

    def _assign(
        self,
        trial: optuna.Trial,
        lease: Lease,
        *,
        record: TrialRecord | None = None,
        is_taken_up: bool = False,
    ) -> Assignment:
        index = asked_index(trial.number, self._study.get_trials(deepcopy=False))
        assignment = Assignment(
            trial=trial,
            lease=lease,
            recipe=suggest_recipe(trial, self._space),
            sampling=suggest_sampling(trial, self._samplings),
            asked_index=index,
            seed=derive_seed(self._seed, index, "training"),
            record=record,
            is_taken_up=is_taken_up,
        )
        self._recorder.record_trial_started(
            lease,
            asked_index=index,
            recipe=assignment.recipe,
            sampling=assignment.sampling,
            seed=assignment.seed,
        )
        return assignment

    def _free_trials(self, trials: Sequence[FrozenTrial], own: Sequence[int]) -> list[FrozenTrial]:
        running = _running(trials, own)
        if not running:
            return []
        now = read_clock(self._storage)
        held = {
            lease.trial
            for lease in read_leases(self._storage, self._study.study_name)
            if lease.owner not in (None, self._presence.owner)
            and lease.expires_at_seconds > now
            and not owner_is_dead(lease.owner)
        }
        return [trial for trial in running if trial.number not in held]


def _running(trials: Sequence[FrozenTrial], own: Sequence[int]) -> list[FrozenTrial]:
    return [t for t in trials if t.state == TrialState.RUNNING and t.number not in own]
