"""A study is flat when the last trials to end have added nothing to its front."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from analysis.points import Reference
from study.goal import Goal
from study.stopping import is_flat

REFERENCE = Reference(recall=0.05, knowledge_loss=0.5)


def make_study(*values: tuple[float, float] | None) -> optuna.Study:
    """Return a study whose trials ended with these values; None is a pruned trial."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    for each in values:
        trial = study.ask()
        if each is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, each)
    return study


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([(0.5, 0.2), (0.4, 0.3), None], True),
        ([(0.5, 0.2), (0.4, 0.3), (0.6, 0.2)], False),
        ([(0.5, 0.2), (0.4, 0.1), None], False),
        ([(0.5, 0.2), (0.5, 0.2), (0.5, 0.2)], True),
        ([(0.5, 0.2), None], False),  # only one ended since
        ([(0.0, 0.0), (0.9, 0.6), None], False),  # nothing has beaten the reference yet
        ([], False),
    ],
)
def test_flat_is_no_gain_in_hypervolume_over_the_last_two(
    values: list[tuple[float, float] | None], flat: bool
) -> None:
    study = make_study(*values)
    study.ask()  # one that runs says nothing
    assert is_flat(study.get_trials(), Goal(), REFERENCE, 2) is flat


def test_trials_count_in_the_order_in_which_they_ended() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    first, second, third = (study.ask() for _ in range(3))
    study.tell(third, (0.5, 0.2))
    study.tell(second, (0.4, 0.3))
    study.tell(first, (0.3, 0.3))
    assert is_flat(study.get_trials(), Goal(), REFERENCE, 2)
