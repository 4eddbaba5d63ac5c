"""Opens a study in Optuna's storage, with its sampler and the points that are tried first."""

from __future__ import annotations

from collections.abc import Mapping

import optuna

from analysis.points import Reference
from objectives.models.base import BaseModel
from search_spaces.grid import Grid
from search_spaces.recipe_space import RecipeSpace
from search_spaces.sampling_space import SamplingSpace
from search_spaces.settings import Value
from search_spaces.starting_points import (
    RECIPE,
    check_point,
    fit_to_space,
    starting_points,
)
from storage.database import StudyStorage
from study.optuna_pruning import make_optuna_pruner
from study.other_study import points_of_study
from study.sampler import SeededSampler
from study.spec import ConfigurationError, StudySpec


def first_points(
    spec: StudySpec, space: RecipeSpace, samplings: SamplingSpace, base: BaseModel
) -> dict[str, dict[str, Value]]:
    """Return the settings of the points to try first by name.

    First come the study file's, then those of another study, then our own.

    Raises:
        SettingError: If no trial could be a point that was named.
        ConfigurationError: If there are such points and a grid tries them all anyway, or the other
            study cannot be read.
    """
    known = {point.name: point for point in starting_points(base.hidden_size)}
    named = {
        f"study file, {number}": check_point(point, space, samplings, known)
        for number, point in enumerate(spec.start, start=1)
    }
    if spec.start_from is not None:
        named |= points_of_study(spec, space, samplings)
    if spec.sampler == "grid":
        if named:
            raise ConfigurationError("start: a grid tries every point anyway; leave it out")
        return {}
    chosen = {str(point.get(RECIPE)) for point in spec.start}
    own = {
        point.name: fit_to_space(point, space, samplings)
        for point in known.values()
        if point.name not in chosen
    }
    return named | {name: settings for name, settings in own.items() if settings is not None}


def open_optuna_study(
    storage: StudyStorage,
    spec: StudySpec,
    name: str,
    grid: Grid | None,
    points: Mapping[str, Mapping[str, Value]],
    reference: Reference,
) -> optuna.Study:
    """Return the study, made if it is not there, with the first points waiting to be asked.

    Only one worker may do this at a time.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    single, goal = spec.single_objective, spec.goal
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=goal.directions,
        sampler=SeededSampler(
            spec.seed, spec.sampler, grid=grid, reference=None if goal.is_single else reference
        ),
        # Optuna's pruners refuse studies with two objectives; those have ours.
        pruner=make_optuna_pruner(
            "none" if single is None else single.pruner,
            reduction=spec.pruner.reduction,
            minimum=spec.pruner.minimum_entries,
        ),
        load_if_exists=True,
    )
    study.set_metric_names(goal.metric_names)
    if not study.get_trials(deepcopy=False):
        for point, settings in points.items():
            study.enqueue_trial(dict(settings), user_attrs={"starting_point": point})
    return study
