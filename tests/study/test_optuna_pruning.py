"""With one objective Optuna's own pruners decide, on scores reported at steps of equal work."""

from __future__ import annotations

import math
from typing import get_args

import optuna
import pytest

from study.optuna_pruning import OptunaPrunerName, decide_by_optuna, make_optuna_pruner
from study.pruning import Decision
from study.rung_vectors import RungVector


def at_rung(rung: int) -> RungVector:
    return RungVector(
        rung=rung,
        epoch=rung + 1,
        trained_tokens=1000 * 3**rung,
        recall=0.5,
        knowledge_loss=0.1,
        is_last=False,
        stamp="",
    )


def decide(trial: optuna.Trial, rung: int, score: float) -> Decision:
    return decide_by_optuna(trial, at_rung(rung), score, reduction=3)


def make_study(name: OptunaPrunerName) -> optuna.Study:
    """Return a study in which four trials went through three rungs with scores of 0.5 to 0.8."""
    study = optuna.create_study(
        direction="maximize", pruner=make_optuna_pruner(name, reduction=3, minimum=1)
    )
    for score in (0.5, 0.6, 0.7, 0.8):
        trial = study.ask()
        for rung in range(3):
            trial.report(score, 3**rung)
        study.tell(trial, score)
    return study


@pytest.mark.parametrize("name", get_args(OptunaPrunerName))
def test_every_pruner_lets_the_best_go_on(name: OptunaPrunerName) -> None:
    trial = make_study(name).ask()
    assert all(decide(trial, rung, 0.9).keep for rung in range(3))


@pytest.mark.parametrize("name", ["median", "percentile"])
def test_pruners_that_compare_at_every_rung_stop_the_worst_at_the_first(
    name: OptunaPrunerName,
) -> None:
    decision = decide(make_study(name).ask(), 0, 0.1)
    assert not decision.keep
    assert "rung 0, epoch 1" in decision.reason


def test_successive_halving_compares_those_that_reached_a_rung() -> None:
    study = optuna.create_study(
        direction="maximize",
        pruner=make_optuna_pruner("successive_halving", reduction=3, minimum=1),
    )
    kept = []
    for score in (0.8, 0.7, 0.6, 0.1):
        trial = study.ask()
        kept.append(decide(trial, 0, score).keep)
        study.tell(trial, score)
    assert kept[-1] is False


def test_the_patient_pruner_waits_a_rung_longer_than_the_median() -> None:
    trial = make_study("patient").ask()
    assert [decide(trial, rung, score).keep for rung, score in enumerate((0.2, 0.1, 0.1))] == [
        True,
        True,
        False,
    ]


def test_a_score_that_is_no_number_is_pruned_and_not_reported() -> None:
    trial = make_study("none").ask()
    assert not decide(trial, 0, math.nan).keep
    assert trial.study.trials[-1].intermediate_values == {}


def test_a_rung_is_reported_once() -> None:
    trial = make_study("none").ask()
    decide(trial, 1, 0.4)
    decide(trial, 1, 0.6)
    assert trial.study.trials[-1].intermediate_values == {3: 0.4}
