"""The training settings a trial may choose, and the function from a trial to its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from data.recipes import TARGET_MODULES, Recipe, SettingError
from search_spaces.settings import (
    Choices,
    Range,
    Setting,
    Value,
    bounds,
    contains,
    fixed,
    require_number,
    require_truth_value,
    require_whole_number,
    suggest,
)

FORMAT_SEPARATOR = "+"

SpaceName = Literal["default", "full", "brief"]

# Every trial is measured on its way there, so that the best number of epochs is found without
# being drawn; benchmarks/SEARCH.md shows what that is worth.
MOST_EPOCHS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSpace:
    """One setting per field of `Recipe`; a format mixture is written `statement+qna`."""

    epochs: Setting
    rank: Setting
    alpha: Setting
    cutoff: Setting
    warmup_steps: Setting
    learning_rate: Setting
    target_modules: Setting = Choices(values=("attention", "mlp", "all"))
    formats: Setting = Choices(
        values=(
            "statement",
            "qna",
            "conversation",
            "statement+qna",
            "statement+qna+conversation",
            "statement+plain+qna+conversation",
        )
    )
    paraphrases: Setting = Choices(values=(1, 2, 4))
    rehearsal: Setting = Choices(values=(0, 1, 2, 4))
    batch_size: Setting = fixed(4)
    packing: Setting = fixed("separate")
    rslora: Setting = fixed(False)
    dropout: Setting = fixed(0.0)
    weight_decay: Setting = fixed(0.0)

    def __post_init__(self) -> None:
        for field in fields(self):
            self.setting(field.name).check(field.name)
        values = {field.name: bounds(self.setting(field.name)) for field in fields(self)}
        typical = {name: first for name, (first, *_) in values.items()}
        for name, each in values.items():
            for value in each:
                build_recipe(typical | {name: value})

    @property
    def max_rank(self) -> int:
        """Return the largest rank a trial may have."""
        return max(int(rank) for rank in bounds(self.rank))

    def setting(self, name: str) -> Setting:
        """Return the setting of one field."""
        setting: Setting = getattr(self, name)
        return setting

    def require(self, name: str, value: Value) -> None:
        """Refuse a value that no trial could have.

        Raises:
            SettingError: Naming the setting, the value and what is allowed.
        """
        typical = {field.name: bounds(self.setting(field.name))[0] for field in fields(self)}
        build_recipe(typical | {name: value})
        if not self.contains(name, value):
            match self.setting(name):
                case Range(low=low, high=high):
                    allowed = f"from {low:g} to {high:g}"
                case Choices(values=values):
                    allowed = f"one of {', '.join(map(str, values))}"
            raise SettingError(
                f"{name}: {value!r} is not allowed; in this study's space it must be {allowed}"
            )

    def contains(self, name: str, value: Value) -> bool:
        """Return whether a trial could have this value of a setting."""
        return contains(self.setting(name), value)


def lora_without_regret_rate(hidden_size: int) -> float:
    """Return the learning rate that "LoRA Without Regret" (Schulman et al. 2025) advises.

    It is the formula of the authors' cookbook for Llama-like models: ten times full fine-tuning's
    5e-5, scaled by (2000 / hidden size) to the power 0.781.
    """
    return float(5e-5 * 10 * (2000 / hidden_size) ** 0.781)


def named_space(
    name: SpaceName, *, hidden_size: int, context_tokens: int, longest_qna_tokens: int
) -> RecipeSpace:
    """Return the ranges of a named space for a model and the facts it is taught.

    `default` leaves out what rarely matters, `full` draws every setting, and `brief` only the six
    that the project began with: on joined texts, for there the cutoff matters to short ones. But
    in `full`, epochs are not drawn: trials go for the most and are measured on their way.

    Args:
        name: The space.
        hidden_size: Of the model; it decides the learning rates.
        context_tokens: The most that the model reads; no cutoff is above.
        longest_qna_tokens: Of the facts as question and answer. Joined texts are cut anywhere; no
            cutoff of `brief` is below.
    """
    advised = lora_without_regret_rate(hidden_size)
    lengths = tuple(length for length in (48, 96, 256) if length <= context_tokens)
    default = RecipeSpace(
        epochs=fixed(MOST_EPOCHS),
        rank=Choices(values=(4, 8, 16, 32)),
        alpha=Choices(values=(8, 16, 32, 64)),
        cutoff=Choices(values=lengths or (context_tokens,)),
        warmup_steps=Range(low=0, high=100),
        # Beyond three times the advised rate, training diverges.
        learning_rate=_rates(advised / 10, advised * 3),
    )
    match name:
        case "default":
            return default
        case "full":
            return replace(
                default,
                epochs=Range(low=3, high=MOST_EPOCHS),
                rank=Choices(values=(1, 4, 8, 16, 32, 64)),
                alpha=Choices(values=(8, 16, 32, 64, 128)),
                learning_rate=_rates(advised / 10, advised * 10),
                target_modules=Choices(values=TARGET_MODULES),
                batch_size=Choices(values=(1, 2, 4, 8, 16, 128)),
                packing=Choices(values=("separate", "joined")),
                rslora=Choices(values=(False, True)),
                dropout=Choices(values=(0.0, 0.05, 0.1)),
                weight_decay=Choices(values=(0.0, 0.01, 0.1)),
            )
        case "brief":
            shortest = min(max(longest_qna_tokens, 8), context_tokens)
            longer = (length for length in (64, 128, 256) if shortest < length <= context_tokens)
            return replace(
                default,
                cutoff=Choices(values=(shortest, *longer)),
                learning_rate=_rates(advised / 10, advised * 10),
                target_modules=fixed("all"),
                formats=fixed("statement+qna+conversation"),
                paraphrases=fixed(1),
                rehearsal=fixed(0),
                packing=fixed("joined"),
            )


def _rates(low: float, high: float) -> Range:
    return Range(low=round(low, 7), high=round(high, 7), log=True)


def largest_recipe(space: RecipeSpace) -> Recipe:
    """Return a recipe whose training takes as much time and memory as any of a space.

    Where size does not matter it has the first value.
    """
    values = {field.name: bounds(space.setting(field.name)) for field in fields(space)}
    largest = {name: each[0] for name, each in values.items()}
    for name in ("epochs", "rank", "cutoff", "batch_size", "rehearsal", "paraphrases"):
        largest[name] = max(values[name])
    largest["formats"] = max(values["formats"], key=lambda names: len(str(names)))
    largest["target_modules"] = (
        "all" if "all" in values["target_modules"] else values["target_modules"][-1]
    )
    return build_recipe(largest)


def suggest_recipe(trial: Any, space: RecipeSpace) -> Recipe:
    """Return the recipe that a trial chooses from a space.

    Args:
        trial: Anything with Optuna's suggest methods.
        space: What may be chosen.
    """
    return build_recipe(
        {
            field.name: suggest(trial, field.name, space.setting(field.name))
            for field in fields(space)
        }
    )


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of plain values, its format mixture written as one text.

    Raises:
        SettingError: If a value is out of its bounds or of another kind.
    """
    settings = dict(values)
    settings["formats"] = tuple(str(settings["formats"]).split(FORMAT_SEPARATOR))
    for name in (
        "epochs",
        "rank",
        "cutoff",
        "warmup_steps",
        "paraphrases",
        "rehearsal",
        "batch_size",
    ):
        require_whole_number(name, settings[name])
    for name in ("alpha", "learning_rate", "dropout", "weight_decay"):
        require_number(name, settings[name])
    require_truth_value("rslora", settings["rslora"])
    return Recipe(**settings)


def settings_of(recipe: Recipe) -> dict[str, Value]:
    """Return a recipe as plain values, the inverse of `build_recipe`."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return values | {"formats": FORMAT_SEPARATOR.join(recipe.formats)}
