"""Known-good recipes to try first, and points that a person names; each checked against the space.

Optuna would ignore a wrong name, and take a value outside its range with a mere warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from data.nearest_name import hint_at
from data.recipes import GREEDY, SettingError
from search_spaces.recipe_space import RecipeSpace, lora_without_regret_rate
from search_spaces.sampling_space import SamplingSpace
from search_spaces.settings import Choices, Range, Value, is_searched

RECIPE = "recipe"  # the key by which a point names a recipe of ours
_SAMPLING = "sampling"

WEBUI_2023 = "webui June 2023"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """A named recipe and a preset; settings it does not name are the sampler's to choose.

    With `is_exact` it is tried with all of its settings or not at all: with others it would not be
    what its name says.
    """

    name: str
    settings: Mapping[str, Value]
    sampling: str = GREEDY.name
    is_exact: bool = False


def starting_points(hidden_size: int) -> tuple[StartingPoint, ...]:
    """Return the recipes in the order they are tried.

    Sources: "LoRA Without Regret" (2025) for the learning rate and all modules; "How Much
    Knowledge Can You Pack into a LoRA Adapter" (2025) for a low rank on the MLP with paraphrases;
    the rehearsed mixture is this project's own finding. The last is what text-generation-webui's
    training tab offered in June 2023. Its learning rate rises for a hundred steps and falls after
    that; with few facts in batches of 128 training ends long before, so that ours is the same.
    """
    rate = lora_without_regret_rate(hidden_size)
    return (
        StartingPoint(
            name="LoRA Without Regret",
            settings={
                "learning_rate": rate,
                "target_modules": "all",
                "rank": 16,
                "alpha": 32,
                "warmup_steps": 0,
                "rehearsal": 0,
            },
        ),
        StartingPoint(
            name="knowledge packing",
            settings={
                "learning_rate": rate / 4,
                "target_modules": "mlp",
                "rank": 4,
                "alpha": 8,
                "paraphrases": 4,
                "rehearsal": 0,
            },
        ),
        StartingPoint(
            name="rehearsed mixture",
            settings={
                "learning_rate": rate / 3,
                "target_modules": "all",
                "rank": 16,
                "alpha": 32,
                "warmup_steps": 10,
                "formats": "statement+qna+conversation",
                "paraphrases": 4,
                "rehearsal": 4,
                "epochs": 16,
            },
        ),
        StartingPoint(
            name=WEBUI_2023,
            settings={
                "epochs": 3,
                "rank": 32,
                "alpha": 64,
                "cutoff": 256,
                "warmup_steps": 100,
                "learning_rate": 3e-4,
                "batch_size": 128,
                "dropout": 0.05,
                "target_modules": "query+value",
                "packing": "separate",
                "rehearsal": 0,
                "paraphrases": 1,
                "rslora": False,
                "weight_decay": 0.0,
            },
            is_exact=True,
        ),
    )


def fit_to_space(
    point: StartingPoint, space: RecipeSpace, samplings: SamplingSpace
) -> dict[str, Value] | None:
    """Return the settings of a starting point that the space searches and allows.

    Numbers beyond a range move to its nearer end; a choice that is not listed is left out, so that
    the sampler decides. None for an exact point of which anything would have to change.
    """
    if point.is_exact and not all(
        space.contains(name, value) for name, value in point.settings.items()
    ):
        return None
    fitted: dict[str, Value] = samplings.fit(point.sampling)
    for name, value in point.settings.items():
        match space.setting(name):
            case Range(low=low, high=high) if isinstance(value, int | float):
                fitted[name] = min(max(value, low), high)
            case Choices(values=values) if len(values) > 1 and value in values:
                fitted[name] = value
            case _:
                pass
    return fitted


def check_point(
    settings: Mapping[str, Value],
    space: RecipeSpace,
    samplings: SamplingSpace,
    known: Mapping[str, StartingPoint],
) -> dict[str, Value]:
    """Return the settings of a point that a person named, without those that are fixed anyway.

    Nothing is moved or left out in silence.

    Args:
        settings: By name; or the name of one of our recipes as `recipe`, and beside it at most
            the sampling.
        space: What a trial may choose.
        samplings: How a trial may answer.
        known: Our recipes by name.

    Raises:
        SettingError: If a setting or recipe does not exist or the space does not allow a value.
    """
    recipe = settings.get(RECIPE)
    if recipe is not None:
        settings = _settings_of_recipe(settings, samplings, known)
    names = [field.name for field in fields(RecipeSpace)]
    checked: dict[str, Value] = {}
    for name, value in settings.items():
        if name == _SAMPLING:
            checked |= samplings.require(str(value))
        elif name not in names:
            settings_are = f"the settings are {', '.join(names)}"
            hint = hint_at(name, names, otherwise=settings_are, cutoff=0.5)
            raise SettingError(f"start: there is no setting {name!r}; {hint}")
        else:
            try:
                space.require(name, value)
            except SettingError as error:
                named = f"start, {recipe}: " if recipe else ""
                raise SettingError(
                    f"{named}{error}; change the point, or widen this setting in [space]"
                ) from error
            if is_searched(space.setting(name)):
                checked[name] = value
    return checked


def _settings_of_recipe(
    settings: Mapping[str, Value],
    samplings: SamplingSpace,
    known: Mapping[str, StartingPoint],
) -> dict[str, Value]:
    """Return all settings of the recipe that a point names."""
    name = str(settings[RECIPE])
    if name not in known:
        recipes_are = f"the recipes are {', '.join(known)}"
        hint = hint_at(name, list(known), otherwise=recipes_are, cutoff=0.5)
        raise SettingError(f"start: there is no recipe {name!r}; {hint}")
    if others := sorted(settings.keys() - {RECIPE, _SAMPLING}):
        raise SettingError(
            f"start: {others[0]} goes with no named recipe: with another value it would not be "
            f"{name!r}; leave it out, or write all settings without the name"
        )
    point = known[name]
    if _SAMPLING in settings:
        return {**point.settings, _SAMPLING: settings[_SAMPLING]}
    own = {_SAMPLING: point.sampling} if point.sampling in samplings.presets else {}
    return {**point.settings, **own}
