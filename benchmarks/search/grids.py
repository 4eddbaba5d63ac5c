"""The two grids: which recipes are trained, which samplings are asked, and after which epochs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from data.recipes import GREEDY, Recipe, Sampling
from objectives.models.base import BaseModel
from search_spaces.presets import find_preset
from search_spaces.recipe_space import (
    RecipeSpace,
    build_recipe,
    lora_without_regret_rate,
    named_space,
)
from search_spaces.settings import Choices, Value, fixed

# After these every adapter is asked greedily, after the last under all samplings.
ASKED_EPOCHS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)
EPOCHS = ASKED_EPOCHS[-1]

SAMPLINGS: tuple[Sampling, ...] = (
    GREEDY,
    *map(
        find_preset,
        (
            "StarChat",
            "simple-1",
            "Shortwave",
            "Divine Intellect",
            "Midnight Enigma",
            "Mirostat",
            "tfs-with-top-a",
            "NovelAI-Decadence",
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpace:
    """A space of which every setting is fixed or a list; epochs and sampling stand apart."""

    name: str
    space: RecipeSpace

    @property
    def searched(self) -> Mapping[str, tuple[Value, ...]]:
        """Return the values of every setting that has several, by its name."""
        listed = {
            field.name: setting.values
            for field in fields(self.space)
            if isinstance(setting := self.space.setting(field.name), Choices)
        }
        return {name: values for name, values in listed.items() if len(values) > 1}

    def recipes(self) -> tuple[Recipe, ...]:
        """Return every recipe, for the most epochs."""
        values = [self.space.setting(field.name) for field in fields(self.space)]
        assert all(isinstance(setting, Choices) for setting in values)
        names = [field.name for field in fields(self.space)]
        listed = [setting.values for setting in values if isinstance(setting, Choices)]
        return tuple(
            build_recipe(dict(zip(names, cell, strict=True)))
            for cell in itertools.product(*listed)
        )


def make_grid_spaces(base: BaseModel, *, longest_qna_tokens: int) -> tuple[GridSpace, ...]:
    """Return the grid of the brief's six settings and that of the default space."""
    hidden_size = base.hidden_size
    advised = lora_without_regret_rate(hidden_size)

    def rates(low: float, high: float, count: int) -> Choices:
        ratio = (high / low) ** (1 / (count - 1))
        return Choices(values=tuple(round(low * ratio**i, 7) for i in range(count)))

    def named(name: str) -> RecipeSpace:
        return named_space(
            "brief" if name == "brief" else "default",
            hidden_size=hidden_size,
            context_tokens=base.context_tokens,
            longest_qna_tokens=longest_qna_tokens,
        )

    brief = named("brief")
    assert isinstance(brief.cutoff, Choices)
    return (
        GridSpace(
            name="brief",
            space=replace(
                brief,
                epochs=fixed(EPOCHS),
                rank=Choices(values=(4, 8, 32)),
                alpha=Choices(values=(8, 32)),
                cutoff=Choices(values=(brief.cutoff.values[0], 128)),
                warmup_steps=Choices(values=(0, 100)),
                learning_rate=rates(advised / 10, advised * 10, 6),
            ),
        ),
        GridSpace(
            name="default",
            space=replace(
                named("default"),
                epochs=fixed(EPOCHS),
                rank=Choices(values=(4, 32)),
                alpha=fixed(32),
                cutoff=fixed(96),
                warmup_steps=fixed(10),
                learning_rate=rates(advised / 10, advised * 3, 5),
                target_modules=Choices(values=("mlp", "all")),
                formats=Choices(
                    values=(
                        "statement",
                        "qna",
                        "statement+qna+conversation",
                        "statement+plain+qna+conversation",
                    )
                ),
                paraphrases=Choices(values=(1, 4)),
                rehearsal=Choices(values=(0, 2)),
            ),
        ),
    )
