"""Known-good recipes that a study tries first, each cut to the study's space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from data.nearest_name import hint_at
from data.recipes import GREEDY, SettingError
from search_spaces.recipe_space import RecipeSpace, lora_without_regret_rate
from search_spaces.sampling_space import SamplingSpace
from search_spaces.settings import Choices, Range, Value, is_searched


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """A named recipe and a preset; settings it does not name are the sampler's to choose."""

    name: str
    settings: Mapping[str, Value]
    sampling: str = GREEDY.name


def starting_points(hidden_size: int) -> tuple[StartingPoint, ...]:
    """Return the recipes in the order they are tried.

    Sources: "LoRA Without Regret" (2025) for the learning rate and all modules; "How Much
    Knowledge Can You Pack into a LoRA Adapter" (2025) for a low rank on the MLP with paraphrases;
    the rehearsed mixture is this project's own finding.
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
    )


def fit_to_space(
    point: StartingPoint, space: RecipeSpace, samplings: SamplingSpace
) -> dict[str, Value]:
    """Return the settings of a starting point that the space searches and allows.

    Numbers beyond a range move to its nearer end; a choice that is not listed is left out, so that
    the sampler decides. Optuna would take a value outside its range with a mere warning.
    """
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
    settings: Mapping[str, Value], space: RecipeSpace, samplings: SamplingSpace
) -> dict[str, Value]:
    """Return the settings of a point that a person named, without those that are fixed anyway.

    Nothing is moved or left out in silence: Optuna would ignore a wrong name, and take a value
    outside its range with a mere warning.

    Raises:
        SettingError: If a setting does not exist or the space does not allow its value.
    """
    known = [field.name for field in fields(RecipeSpace)]
    checked: dict[str, Value] = {}
    for name, value in settings.items():
        if name == "sampling":
            checked |= samplings.require(str(value))
        elif name not in known:
            settings_are = f"the settings are {', '.join(known)}"
            hint = hint_at(name, known, otherwise=settings_are, cutoff=0.5)
            raise SettingError(f"start: there is no setting {name!r}; {hint}")
        else:
            space.require(name, value)
            if is_searched(space.setting(name)):
                checked[name] = value
    return checked
