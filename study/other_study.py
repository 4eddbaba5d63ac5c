"""Takes the best members of another study as points that a study tries first."""

from __future__ import annotations

from analysis.points import front_points, study_points
from data.recipes import SettingError
from search_spaces.recipe_space import RecipeSpace, settings_of
from search_spaces.sampling_space import SamplingSpace
from search_spaces.settings import Value, bounds, is_searched
from search_spaces.starting_points import check_point
from study.place import find_place
from study.spec import ConfigurationError, StudySpec
from study.stored import read_stored, reference_of


def points_of_study(
    spec: StudySpec, space: RecipeSpace, samplings: SamplingSpace
) -> dict[str, dict[str, Value]]:
    """Return the trials on the front of the study that `spec.start_from` names, the best first.

    Best is the highest recall - knowledge loss. A trial that is there with one of its rungs is
    tried with all its epochs, or with this study's if those are fixed and no fewer: it passes the
    rung on its way. The two studies may differ in facts
    and model. A sampling that this study does not offer is left to its sampler.

    Raises:
        ConfigurationError: If there is no such study or nothing on its front.
        SettingError: If a member is outside this study's space.
    """
    assert spec.start_from is not None
    other = spec.start_from
    place = find_place(
        spec.model_copy(update={"name": other.study, "storage": other.storage or spec.storage})
    )
    record = read_stored(place)
    if record is None:
        raise ConfigurationError(
            f"start_from.study: there is no study {other.study!r} at {place.shown_storage_url}; "
            "name another, or its start_from.storage"
        )
    of_other = StudySpec.model_validate_json(record.config)
    base = record.base.measurement.recall.value if record.base else None
    front = front_points(study_points(record), reference_of(of_other, base))
    front_by_merit = sorted(front, key=lambda point: point.knowledge_loss - point.recall)
    best = list({point.trial: point for point in reversed(front_by_merit)}.values())[::-1]
    if not best:
        raise ConfigurationError(
            f"start_from.study: {other.study!r} has nothing on its front to start from; leave "
            "start_from out"
        )
    recipes = {trial.number: trial.recipe for trial in record.trials}
    points: dict[str, dict[str, Value]] = {}
    for point in best[: other.best]:
        name = f"{other.study}, trial {point.trial}"
        settings = settings_of(recipes[point.trial])
        (longest,) = bounds(space.epochs)[-1:]
        if not is_searched(space.epochs) and int(longest) >= point.epoch:
            del settings["epochs"]
        if point.sampling.name in samplings.presets:
            settings = {**settings, "sampling": point.sampling.name}
        try:
            points[name] = check_point(settings, space, samplings, {})
        except SettingError as error:
            raise SettingError(f"start_from ({name}): {error}") from error
    return points
