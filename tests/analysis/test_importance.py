"""Which settings a study finds to matter."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import optuna
import pytest

from analysis.importance import MIN_TRIALS, rank_settings
from analysis.points import Reference

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker

REFERENCE = Reference(recall=0.05, knowledge_loss=0.5)


def add_trials(maker: StudyMaker, count: int) -> StudyMaker:
    """Add trials whose recall follows the learning rate, whose loss follows the rehearsal."""
    draw = random.Random(1)
    for _ in range(count):
        exponent, rehearsal = draw.uniform(-4, -2), draw.choice([0, 1, 3])
        maker.add(
            (4, 0.1 + 0.4 * (exponent + 4), 0.3 / (1 + rehearsal)),
            learning_rate=10**exponent,
            rehearsal=rehearsal,
            rank=draw.choice([4, 8, 16, 32]),
        )
    return maker


def test_the_setting_that_decides_an_objective_comes_first(maker: StudyMaker) -> None:
    study = add_trials(maker, 30).study()
    for_recall = rank_settings(study, REFERENCE, "recall")
    for_loss = rank_settings(study, REFERENCE, "knowledge loss")

    assert for_recall is not None
    assert for_loss is not None
    assert max(for_recall.shares, key=for_recall.shares.__getitem__) == "learning rate"
    assert max(for_loss.shares, key=for_loss.shares.__getitem__) == "rehearsal"
    assert for_recall.trials == for_loss.trials == 30


def test_shares_sum_to_one_over_the_settings_that_vary(maker: StudyMaker) -> None:
    ranked = rank_settings(add_trials(maker, 12).study(), REFERENCE, "recall")

    assert ranked is not None
    assert set(ranked.shares) == {"learning rate", "rehearsal", "rank"}
    assert sum(ranked.shares.values()) == pytest.approx(1)


def test_formats_are_ranked_as_categories(maker: StudyMaker) -> None:
    for number in range(20):
        maker.add((4, 0.9 if number % 2 else 0.1, 0.1))
        if number % 2:
            trial = maker.trials[-1]
            maker.trials[-1] = replace(trial, recipe=replace(trial.recipe, formats=("qna",)))
    ranked = rank_settings(maker.study(), REFERENCE, "recall")

    assert ranked is not None
    assert ranked.shares == {"formats": 1.0}


def test_too_few_trials_are_not_ranked(maker: StudyMaker) -> None:
    study = add_trials(maker, MIN_TRIALS - 1).study()

    assert rank_settings(study, REFERENCE, "recall") is None


def test_trials_that_learned_nothing_say_nothing_about_the_loss(maker: StudyMaker) -> None:
    add_trials(maker, MIN_TRIALS)
    study = maker.add((4, 0.0, 0.0), rank=2).study()
    ranked = rank_settings(study, REFERENCE, "knowledge loss")

    assert ranked is not None
    assert ranked.trials == MIN_TRIALS


def test_settings_that_never_vary_are_not_ranked(maker: StudyMaker) -> None:
    for _ in range(MIN_TRIALS):
        maker.add((4, 0.5, 0.1))

    assert rank_settings(maker.study(), REFERENCE, "recall") is None


def test_ranking_is_silent_and_leaves_the_log_level_as_it_was(
    maker: StudyMaker, capfd: pytest.CaptureFixture[str]
) -> None:
    level = optuna.logging.get_verbosity()
    rank_settings(add_trials(maker, MIN_TRIALS).study(), REFERENCE, "recall")

    assert optuna.logging.get_verbosity() == level
    assert capfd.readouterr() == ("", "")
