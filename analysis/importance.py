"""Ranks a study's settings by how much they separate its best trials from all trials."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from analysis.points import Reference, study_points
from analysis.wording import say_formats
from data.recipes import GREEDY, Recipe
from storage.records import StudyRecord

Objective = Literal["recall", "knowledge loss"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

# With fewer trials the better half is a handful, and any setting seems to matter.
MIN_TRIALS = 10
_BEST_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Each varied setting's share of the importance for one objective; the shares sum to 1.

    `trials` is the number of trials it rests on. Shares compare settings, they do not say whether
    any of them matters much.
    """

    shares: Mapping[str, float]
    trials: int


def rank_settings(
    record: StudyRecord, reference: Reference, objective: Objective
) -> Importance | None:
    """Return how much each setting matters for an objective, or None ("not measured").

    Each trial enters with its last greedy measurement, pruned ones included. PED-ANOVA (Watanabe
    et al. 2023, arXiv 2304.10255) compares how a setting is distributed among the better half of
    the trials and among all of them. None with fewer than `MIN_TRIALS` trials or without a setting
    that varies.

    Two choices keep pruning out of the answer. `epochs` is the number that the trial asked for,
    because the number that it reached says how good it was, not the reverse. And the knowledge
    loss is ranked among trials that beat the reference's recall: the others lose little because
    they learned nothing.
    """
    asked = {trial.number: trial.recipe for trial in record.trials}
    last_of = {point.trial: point for point in study_points(record) if point.sampling == GREEDY}
    points = [
        replace(point, recipe=asked[point.trial])
        for point in last_of.values()
        if objective == "recall" or point.recall > reference.recall
    ]
    if len(points) < MIN_TRIALS:
        return None
    shares = rank_by_ped_anova(
        [_settings_of(point.recipe) for point in points],
        [point.recall if objective == "recall" else point.knowledge_loss for point in points],
        higher_is_better=objective == "recall",
    )
    return Importance(shares=shares, trials=len(points)) if shares else None


def rank_by_ped_anova(
    rows: Sequence[Mapping[str, str | float]],
    values: Sequence[float],
    *,
    higher_is_better: bool,
) -> dict[str, float]:
    """Return each setting's share of the importance for a value, by PED-ANOVA.

    Settings that do not vary are left out; empty if none does.

    Args:
        rows: The settings of each trial by name.
        values: What came of it.
        higher_is_better: Whether the better half has the higher values.
    """
    distributions = _describe_settings(rows)
    if not distributions:
        return {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # an in-memory study is no news
    try:
        study = optuna.create_study(direction="maximize" if higher_is_better else "minimize")
    finally:
        optuna.logging.set_verbosity(verbosity)
    listed = {name: _distinct(rows, name) for name in distributions}
    for value, row in zip(values, rows, strict=True):
        study.add_trial(
            optuna.trial.create_trial(
                params={name: listed[name].index(row[name]) for name in distributions},
                distributions=distributions,
                value=value,
            )
        )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE)
    with warnings.catch_warnings():
        # With many ties the better half may be all trials: then no setting stands out, which is
        # what equal importances say.
        warnings.filterwarnings("ignore", message="Target and region quantiles")
        return get_param_importances(study, evaluator=evaluator, normalize=True)


def _settings_of(recipe: Recipe) -> dict[str, str | float]:
    return {
        "epochs": recipe.epochs,
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "learning rate": recipe.learning_rate,
        "warm-up steps": recipe.warmup_steps,
        "batch": recipe.batch_size,
        "cutoff": recipe.cutoff,
        "packing": recipe.packing,
        "adapted modules": recipe.target_modules,
        "formats": say_formats(recipe),
        "wordings per question": recipe.paraphrases,
        "rehearsal": recipe.rehearsal,
        "rank-stabilised": recipe.rslora,
        "dropout": recipe.dropout,
        "weight decay": recipe.weight_decay,
    }


def _describe_settings(rows: Sequence[Mapping[str, str | float]]) -> dict[str, BaseDistribution]:
    """Return a distribution over the positions of each setting's values; constant ones are out.

    A setting enters as the position of its value among the values seen. With the values themselves
    a few far apart ones (0, 10 and 50 warm-up steps) looked important wherever chance put them: on
    30 made studies of 20 trials a setting without effect came first in 9, with positions in 1.
    """
    distributions: dict[str, BaseDistribution] = {}
    for name, value in rows[0].items():
        values = _distinct(rows, name)
        if len(values) > 1:
            positions = range(len(values))
            distributions[name] = (
                CategoricalDistribution(positions)
                if isinstance(value, str)
                else IntDistribution(0, positions[-1])
            )
    return distributions


def _distinct(rows: Sequence[Mapping[str, str | float]], name: str) -> list[str | float]:
    values = {row[name] for row in rows}
    texts = sorted(value for value in values if isinstance(value, str))
    return [*texts, *sorted(value for value in values if not isinstance(value, str))]
