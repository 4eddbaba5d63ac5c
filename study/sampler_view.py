"""What a sampler learns from: every trial at the best point that was seen on its way.

A trial that is stopped because it began to lose too much may have been on the front before. Told
as pruned it would warn the sampler of just the settings that the front is made of; and of no
pruned trial would it know how far it is from where it should be.
"""

from __future__ import annotations

import math
from functools import partial

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.points import Reference
from study.rung_vectors import is_inside, make_stamp, stored_vectors

_CONSTRAINTS = "constraints"


def view_of(study: optuna.Study, reference: Reference) -> optuna.Study:
    """Return a copy of a study with two objectives in which trials are known by their best points.

    An ended trial that reached a rung is complete: at the rung of the largest area between its
    point and the reference, or if it never beat that, of the largest recall - knowledge loss. All
    others are as they are. Numbers stay.
    """
    copy = optuna.create_study(storage=InMemoryStorage(), directions=study.directions)
    for trial in study.get_trials(deepcopy=False):
        copy.add_trial(_at_best(trial, reference))
    return copy


def _at_best(trial: FrozenTrial, reference: Reference) -> FrozenTrial:
    reached = _points_reached(trial, reference)
    if not reached:
        return trial
    best = max(reached, key=partial(_merit, reference))
    attributes = trial.system_attrs
    if is_inside(reference, *best):
        # A bound on the loss is the reference's own, so that the point keeps it.
        attributes = {
            name: _kept(value) if name.startswith(_CONSTRAINTS) else value
            for name, value in attributes.items()
        }
    return create_trial(
        state=TrialState.COMPLETE,
        values=list(best),
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=attributes,
    )


def _points_reached(trial: FrozenTrial, reference: Reference) -> list[tuple[float, float]]:
    """Return the points at the rungs of an ended trial; none of one that runs or failed."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return []
    stamp = make_stamp(reference)
    return [
        (vector.recall, vector.knowledge_loss)
        for vector in stored_vectors(trial)
        if vector.stamp == stamp
        and math.isfinite(vector.recall)
        and math.isfinite(vector.knowledge_loss)
    ]


def _merit(reference: Reference, point: tuple[float, float]) -> tuple[float, float]:
    recall, loss = point
    above, below = max(recall - reference.recall, 0.0), max(reference.knowledge_loss - loss, 0.0)
    return above * below, recall - loss


def _kept(violation: float | list[float]) -> float | list[float]:
    if isinstance(violation, list):
        return [min(value, 0.0) for value in violation]
    return min(violation, 0.0)
