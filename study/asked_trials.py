"""Tells the trials that a study asked from points that were measured along the way of one."""

from __future__ import annotations

from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

MEASURED_FROM = "measured_from"  # the user attribute with the number of the asked trial


def is_free(trial: FrozenTrial) -> bool:
    """Return whether a trial of Optuna's table is a point measured along another's way."""
    return MEASURED_FROM in trial.user_attrs


def asked_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return those that were asked, whatever became of them; not those that only wait to be."""
    return [trial for trial in trials if trial.state != TrialState.WAITING and not is_free(trial)]


def asked_index(number: int, trials: Iterable[FrozenTrial]) -> int:
    """Return the position of an asked trial among the asked ones, counted from 0.

    Optuna's number counts free points too. Those that come later change nothing, so that the
    index stays for ever.

    Args:
        number: Optuna's, of the trial.
        trials: All of the study.
    """
    return number - sum(is_free(trial) and trial.number < number for trial in trials)
