"""Prunes trials of a study with one objective by Optuna's own pruners, which refuse several."""

from __future__ import annotations

import math
from typing import Literal

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from study.pruning import Decision
from study.rung_vectors import RungVector

OptunaPrunerName = Literal[
    "median", "percentile", "successive_halving", "hyperband", "patient", "none"
]

# Rungs that a trial may reach in all; hyperband plans its brackets by it.
_RUNGS = 4


def make_optuna_pruner(name: OptunaPrunerName, *, reduction: int, minimum: int) -> BasePruner:
    """Return a pruner of Optuna for steps that count work in units of the first rung's.

    Args:
        name: Which.
        reduction: The ratio of the work at one rung to that at the rung before.
        minimum: Of so many trials the first are never pruned, where the pruner has a say in it.
    """
    match name:
        case "median":
            return MedianPruner(n_startup_trials=minimum)
        case "percentile":
            return PercentilePruner(100 / reduction, n_startup_trials=minimum)
        case "successive_halving":
            # Its own bootstrap would prune the first trials, not spare them.
            return SuccessiveHalvingPruner(min_resource=1, reduction_factor=reduction)
        case "hyperband":
            return HyperbandPruner(
                min_resource=1, max_resource=reduction ** (_RUNGS - 1), reduction_factor=reduction
            )
        case "patient":
            return PatientPruner(MedianPruner(n_startup_trials=minimum), patience=1)
        case "none":
            return NopPruner()


def decide_by_optuna(
    trial: optuna.Trial, vector: RungVector, score: float, *, reduction: int
) -> Decision:
    """Report a trial's score at a rung and return what the study's pruner says.

    A rung that was reported before, as after a restart, is not reported again.

    Args:
        trial: The trial.
        vector: What it reached at the rung.
        score: The value to be maximised there; NaN is pruned.
        reduction: The ratio of the work at one rung to that at the rung before.
    """
    at_rung = f"rung {vector.rung}, epoch {vector.epoch}"
    if not math.isfinite(score):
        return Decision(keep=False, reason="recall or knowledge loss is not a number")
    step = reduction**vector.rung
    reported = trial.storage.get_trial(trial._trial_id).intermediate_values
    if step not in reported:
        trial.report(score, step)
    pruner = type(trial.study.pruner).__name__
    if trial.should_prune():
        return Decision(keep=False, reason=f"{at_rung}: {pruner} prunes at a score of {score:.2f}")
    return Decision(keep=True, reason=f"{at_rung}: {pruner} goes on")
