"""What Optuna is told of a trial: two objectives or one, and how far it breaks the bound."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from analysis.points import Reference
from study.goal import Goal, constraint_attributes

REFERENCE = Reference(recall=0.05, knowledge_loss=0.5)


def test_one_objective_weighs_the_loss_against_the_recall() -> None:
    assert Goal().values(0.75, 0.125) == (0.75, 0.125)
    assert Goal(loss_weight=2).values(0.75, 0.125) == (0.5,)
    assert Goal(loss_weight=0.5).metric_names == ["judged recall - 0.5 * knowledge loss"]
    assert all(math.isnan(value) for value in Goal(loss_weight=0).values(math.nan, 0.1))


def test_what_was_reached_is_the_hypervolume_or_the_best_value() -> None:
    def trials(goal: Goal) -> list[optuna.trial.FrozenTrial]:
        points = [(0.55, 0.25), (0.3, 0.4), (0.0, 0.0)]
        return [
            *(create_trial(values=goal.values(*point)) for point in points),
            create_trial(state=TrialState.PRUNED),
        ]

    assert Goal().reached(trials(Goal()), REFERENCE) == pytest.approx(0.5 * 0.25)
    single = Goal(loss_weight=1)
    # An adapter that did nothing, at the reference's recall, would have 0.05.
    assert single.reached(trials(single), REFERENCE) == pytest.approx(0.3 - 0.05)
    assert single.reached([], REFERENCE) == 0


def test_a_bound_is_read_by_optuna_by_name_and_as_a_list_by_dashboards() -> None:
    goal = Goal(max_knowledge_loss=0.25)
    study = optuna.create_study(directions=goal.directions)
    for recall, loss in [(0.5, 0.125), (0.75, 0.5), (0.25, 0.25)]:
        trial = study.ask()
        goal.constrain(trial, loss)
        goal.constrain(trial, loss)  # as after a restart
        study.tell(trial, goal.values(recall, loss))
    assert [trial.constraints["max_knowledge_loss"] for trial in study.trials] == [
        -0.125,
        0.25,
        0.0,
    ]
    assert [trial.system_attrs["constraints"] for trial in study.trials] == [
        [-0.125],
        [0.25],
        [0.0],
    ]
    assert [trial.number for trial in study.best_trials] == [0]


def test_without_a_bound_or_a_measured_loss_there_is_no_constraint() -> None:
    assert constraint_attributes(Goal().constraints(0.9)) == {}
    assert constraint_attributes(Goal(max_knowledge_loss=0.1).constraints(math.nan)) == {}
