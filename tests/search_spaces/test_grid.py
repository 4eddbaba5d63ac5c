"""A grid has every value of what is searched, and nothing that has infinitely many."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data.recipes import SettingError
from search_spaces.grid import count_cells, make_grid
from search_spaces.recipe_space import named_space
from search_spaces.sampling_space import DEFAULT_MATRIX, SamplingSpace
from search_spaces.settings import Choices, Range

SPACE = named_space("default", hidden_size=128, context_tokens=512, longest_qna_tokens=40)


def test_a_grid_lists_what_is_searched() -> None:
    brief = named_space("brief", hidden_size=128, context_tokens=512, longest_qna_tokens=40)
    space = replace(
        brief,
        learning_rate=Choices(values=(1e-3, 3e-3)),
        epochs=Range(low=2, high=4),
        warmup_steps=Choices(values=(0,)),
        cutoff=Choices(values=(64,)),
    )
    grid = make_grid(space, SamplingSpace(presets=("greedy", "StarChat")))
    assert grid == {
        "epochs": (2, 3, 4),
        "rank": (4, 8, 16, 32),
        "alpha": (8, 16, 32, 64),
        "learning_rate": (1e-3, 3e-3),
        "sampling": ("greedy", "StarChat"),
    }
    assert count_cells(grid) == 3 * 4 * 4 * 2 * 2
    assert count_cells({}) == 1


def test_a_range_of_real_numbers_is_refused() -> None:
    with pytest.raises(SettingError, match="learning_rate: a grid needs a list"):
        make_grid(SPACE, SamplingSpace())


def test_a_matrix_is_refused() -> None:
    with pytest.raises(SettingError, match="a grid cannot go with the matrix"):
        make_grid(SPACE, SamplingSpace(matrix=DEFAULT_MATRIX))
