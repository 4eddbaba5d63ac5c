"""The tables of docs/search-space.md say what the spaces are."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from data.recipes import Sampling
from search_spaces.presets import FAMILIES, PRESETS
from search_spaces.recipe_space import (
    RecipeSpace,
    SpaceName,
    lora_without_regret_rate,
    named_space,
)
from search_spaces.sampling_space import DEFAULT_MATRIX
from search_spaces.settings import Choices, Range, Setting, Value

PAGE = Path(__file__).parents[2] / "docs" / "search-space.md"
HIDDEN_SIZE, LONGEST_QNA = 128, 45


def rows_under(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    _, _, after = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")
    lines = after[after.index("|") :].splitlines()
    table = lines[: next((n for n, line in enumerate(lines) if not line.startswith("|")), None)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def say(setting: Setting) -> str:
    match setting:
        case Choices(values=values):
            return ", ".join(map(say_value, values))
        case Range(low=low, high=high):
            return f"{low:g} to {high:g}"


def say_value(value: Value) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return value
        case _:
            return f"{value:g}"


def say_of(space: RecipeSpace, name: str) -> str:
    setting = space.setting(name)
    if name == "learning_rate":
        assert isinstance(setting, Range)
        advised = lora_without_regret_rate(HIDDEN_SIZE)
        return f"{setting.low / advised:.1f} to {setting.high / advised:.0f} times advised"
    if name == "formats" and isinstance(setting, Choices) and len(setting.values) > 1:
        return f"{len(setting.values)} mixtures"
    return say(setting).replace(str(LONGEST_QNA), "longest") if name == "cutoff" else say(setting)


@pytest.mark.parametrize(("column", "space_name"), [(1, "default"), (2, "full"), (3, "brief")])
def test_every_training_setting_has_its_range_in_the_table(
    column: int, space_name: SpaceName
) -> None:
    space = named_space(
        space_name,
        hidden_size=HIDDEN_SIZE,
        context_tokens=512,
        longest_qna_tokens=LONGEST_QNA,
    )
    rows = {row[0].strip("`"): row[column] for row in rows_under("Training settings")}
    assert rows == {field.name: say_of(space, field.name) for field in fields(space)}


def test_the_format_mixtures_are_listed() -> None:
    space = named_space(
        "default", hidden_size=128, context_tokens=512, longest_qna_tokens=LONGEST_QNA
    )
    assert isinstance(space.formats, Choices)
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{mixture}`" in text for mixture in space.formats.values)


def test_every_sampling_setting_has_its_bounds_and_default_range() -> None:
    rows = {row[0].strip("`"): row[1:3] for row in rows_under("Sampling settings")}
    drawing = Sampling(name="as it is")
    settings = {
        field.name: getattr(drawing, field.name)
        for field in fields(Sampling)
        if field.name != "name"
    }
    assert rows == {
        name: [
            say_value(off),
            say(DEFAULT_MATRIX[name]) if name in DEFAULT_MATRIX else "not searched",
        ]
        for name, off in settings.items()
    }


def test_every_family_lists_its_presets() -> None:
    rows = {row[0].strip("`"): row[1] for row in rows_under("Presets")}
    assert rows == {family: ", ".join(names) for family, names in FAMILIES.items()}
    assert PRESETS["greedy"].name not in rows
