"""What a sampler learns from: every trial at the best point that was seen on its way.

A trial that is stopped because it began to lose too much may have been on the front before. Told
as pruned it would warn the sampler of just the settings that the front is made of; and of no
pruned trial would it know how far it is from where it should be.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from analysis.points import Reference
from study.rung_vectors import is_inside, make_stamp, stored_vectors

_CONSTRAINTS = "constraints"


def view_of(
    study: optuna.Study, reference: Reference, *, known: dict[int, FrozenTrial] | None = None
) -> optuna.Study:
    """Return a study with two objectives as it is, but for trials known by their best points.

    An ended trial that reached a rung is complete: at the rung of the largest area between its
    point and the reference, or if it never beat that, of the largest recall - knowledge loss. All
    others are as they are. What is noted with a trial is noted in the study itself.

    Args:
        study: The study.
        reference: The point to beat.
        known: Filled with ended trials by number, and read, for they change no more.
    """
    known = {} if known is None else known
    trials = [
        known.get(trial.number) or _at_best(trial, reference)
        for trial in study.get_trials(deepcopy=False)
    ]
    known |= {trial.number: trial for trial in trials if trial.state.is_finished()}
    storage = _View(study, trials)
    study_id = storage.create_new_study(study.directions, "view")
    return optuna.Study(storage.get_study_name_from_id(study_id), storage)


class _View(InMemoryStorage):
    """A storage of one study with given trials; what is noted with one goes to the real one."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        super().__init__()
        self._real = study._storage
        self._given = trials

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = [trial for trial in self._given if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._real.set_trial_system_attr(trial_id, key, value)


def _at_best(trial: FrozenTrial, reference: Reference) -> FrozenTrial:
    reached = _points_reached(trial, reference)
    if not reached:
        return trial
    best = max(reached, key=partial(_merit, reference))
    seen = copy.copy(trial)
    seen.state, seen.values = TrialState.COMPLETE, list(best)
    if is_inside(reference, *best):
        # A bound on the loss is the reference's own, so that the point keeps it.
        seen.system_attrs = {
            name: _kept(value) if name.startswith(_CONSTRAINTS) else value
            for name, value in trial.system_attrs.items()
        }
    return seen


def _points_reached(trial: FrozenTrial, reference: Reference) -> Sequence[tuple[float, float]]:
    """Return the points at the rungs of an ended trial; none of one that runs or failed."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return ()
    stamp = make_stamp(reference)
    return [
        vector.point
        for vector in stored_vectors(trial)
        if vector.stamp == stamp and all(map(math.isfinite, vector.point))
    ]


def _merit(reference: Reference, point: tuple[float, float]) -> tuple[float, float]:
    recall, loss = point
    above, below = max(recall - reference.recall, 0.0), max(reference.knowledge_loss - loss, 0.0)
    return above * below, recall - loss


def _kept(violation: float | list[float]) -> float | list[float]:
    if isinstance(violation, list):
        return [min(value, 0.0) for value in violation]
    return min(violation, 0.0)
