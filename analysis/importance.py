"""Ranks a study's settings by how much they separate its best trials from all trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from analysis.points import Point, Reference, study_points
from analysis.wording import say_formats
from data.recipes import Recipe
from storage.records import StudyRecord

Objective = Literal["recall", "knowledge loss"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

# With fewer trials the best quarter is two of them, and any setting seems to matter.
MIN_TRIALS = 10
_BEST_SHARE = 0.25


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
    et al. 2023, arXiv 2304.10255) compares how a setting is distributed among the best quarter of
    the trials and among all of them. None with fewer than `MIN_TRIALS` trials or without a setting
    that varies.

    Two choices keep pruning out of the answer. `epochs` is the number that the trial asked for: the
    number that it reached says how good it was, not the reverse. And the knowledge loss is ranked
    among trials that beat the reference's recall: the others lose little because they learned
    nothing.
    """
    asked = {trial.number: trial.recipe for trial in record.trials}
    last_of = {
        point.trial: point for point in study_points(record) if not point.sampling.do_sample
    }
    points = [
        replace(point, recipe=asked[point.trial])
        for point in last_of.values()
        if objective == "recall" or point.recall > reference.recall
    ]
    if len(points) < MIN_TRIALS:
        return None
    distributions = _describe_settings([point.recipe for point in points])
    if not distributions:
        return None
    return Importance(shares=_rank(points, distributions, objective), trials=len(points))


def _rank(
    points: Sequence[Point], distributions: Mapping[str, BaseDistribution], objective: Objective
) -> dict[str, float]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # an in-memory study is no news
    try:
        study = optuna.create_study(direction="maximize" if objective == "recall" else "minimize")
    finally:
        optuna.logging.set_verbosity(verbosity)
    for point in points:
        settings = _settings_of(point.recipe)
        study.add_trial(
            optuna.trial.create_trial(
                params={name: settings[name] for name in distributions},
                distributions=dict(distributions),
                value=point.recall if objective == "recall" else point.knowledge_loss,
            )
        )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE)
    return get_param_importances(study, evaluator=evaluator, normalize=True)


def _settings_of(recipe: Recipe) -> dict[str, str | int | float]:
    return {
        "epochs": recipe.epochs,
        "rank": recipe.rank,
        "alpha": float(recipe.alpha),
        "learning rate": recipe.learning_rate,
        "warm-up steps": recipe.warmup_steps,
        "batch": recipe.batch_size,
        "cutoff": recipe.cutoff,
        "packing": recipe.packing,
        "adapted modules": recipe.target_modules,
        "formats": say_formats(recipe),
        "wordings per question": recipe.paraphrases,
        "rehearsal": recipe.rehearsal,
        "rank-stabilised": "yes" if recipe.rslora else "no",
        "dropout": float(recipe.dropout),
        "weight decay": float(recipe.weight_decay),
    }


def _describe_settings(recipes: Sequence[Recipe]) -> dict[str, BaseDistribution]:
    """Return the range that each setting was seen in; settings that never vary are left out."""
    rows = [_settings_of(recipe) for recipe in recipes]
    ranges: dict[str, BaseDistribution] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if len(set(values)) == 1:
            continue
        texts = sorted({value for value in values if isinstance(value, str)})
        whole = [value for value in values if isinstance(value, int)]
        numbers = [float(value) for value in values if not isinstance(value, str)]
        if texts:
            ranges[name] = CategoricalDistribution(texts)
        elif len(whole) == len(values):
            ranges[name] = IntDistribution(min(whole), max(whole), log=_spans_magnitudes(numbers))
        else:
            ranges[name] = FloatDistribution(
                min(numbers), max(numbers), log=_spans_magnitudes(numbers)
            )
    return ranges


def _spans_magnitudes(values: Sequence[float]) -> bool:
    return min(values) > 0 and math.log10(max(values) / min(values)) >= 1
