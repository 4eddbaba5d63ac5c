"""Lists all values of every searched setting, for a study that tries their combinations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

from data.recipes import SettingError
from search_spaces.recipe_space import RecipeSpace
from search_spaces.sampling_space import SamplingSpace
from search_spaces.settings import Choices, Range, Setting, Value

Grid = Mapping[str, Sequence[Value]]


def make_grid(space: RecipeSpace, samplings: SamplingSpace) -> Grid:
    """Return all values of every setting that is not fixed, by its name in a trial.

    Raises:
        SettingError: If one has infinitely many, or sampling settings depend on one another.
    """
    if samplings.matrix:
        raise SettingError(
            "sampler: a grid cannot go with the matrix, where some settings have a say only under "
            "others; list presets, or name another sampler"
        )
    values = {
        field.name: _every_value(field.name, space.setting(field.name)) for field in fields(space)
    } | {"sampling": samplings.presets}
    return {name: each for name, each in values.items() if len(each) > 1}


def count_cells(grid: Grid) -> int:
    """Return how many combinations a grid has; 1 without settings."""
    return math.prod(map(len, grid.values()))


def _every_value(name: str, setting: Setting) -> tuple[Value, ...]:
    match setting:
        case Choices(values=values):
            return values
        case Range(low=int() as low, high=int() as high):
            return tuple(range(low, high + 1))
        case Range(low=low, high=high):
            raise SettingError(
                f"{name}: a grid needs a list, and this is the range from {low:g} to {high:g}; "
                "write the values to try, such as [0.001, 0.003]"
            )
