"""What a sampler learns from: every trial at the best point that was seen on its way.

A trial that is stopped because it began to lose too much may have been on the front before. Told
as pruned it would warn the sampler of just the settings that the front is made of.
"""

from __future__ import annotations

from functools import partial

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.points import Reference
from study.rung_vectors import is_inside, make_stamp, stored_vectors

_CONSTRAINTS = "constraints"


def view_of(study: optuna.Study, reference: Reference) -> optuna.Study:
    """Return a copy of a study with two objectives in which trials are known by their best points.

    An ended trial that was inside the reference box at a rung is complete there, at the rung of
    the largest area between its point and the reference. One that reached a rung and never was
    inside counts as pruned, for nothing else found outside is of use: with a high recall at too
    high a loss it would pass for one of the best. Others are as they are. Numbers stay.
    """
    copy = optuna.create_study(storage=InMemoryStorage(), directions=study.directions)
    for trial in study.get_trials(deepcopy=False):
        copy.add_trial(_at_best(trial, reference))
    return copy


def _at_best(trial: FrozenTrial, reference: Reference) -> FrozenTrial:
    values, attributes = trial.values, trial.system_attrs
    state, stamp = trial.state, make_stamp(reference)
    if state in (TrialState.COMPLETE, TrialState.PRUNED):
        inside = [
            (vector.recall, vector.knowledge_loss)
            for vector in stored_vectors(trial)
            if vector.stamp == stamp and is_inside(reference, vector.recall, vector.knowledge_loss)
        ]
        if inside:
            values = list(max(inside, key=partial(_area, reference)))
            state = TrialState.COMPLETE
            # A bound on the loss is the reference's own, so that the point keeps it.
            attributes = {
                name: _kept(value) if name.startswith(_CONSTRAINTS) else value
                for name, value in attributes.items()
            }
    return create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=attributes,
    )


def _area(reference: Reference, point: tuple[float, float]) -> float:
    recall, loss = point
    return (recall - reference.recall) * (reference.knowledge_loss - loss)


def _kept(violation: float | list[float]) -> float | list[float]:
    if isinstance(violation, list):
        return [min(value, 0.0) for value in violation]
    return min(violation, 0.0)
