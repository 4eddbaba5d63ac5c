"""The sampling settings a trial may choose, and the function from a trial to its sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.recipes import Sampling
from search_spaces.presets import find_preset
from search_spaces.settings import Choices, suggest


def suggest_sampling(trial: Any, preset_names: Sequence[str]) -> Sampling:
    """Return the preset that a trial chooses; a single one is fixed and not asked for."""
    return find_preset(str(suggest(trial, "sampling", Choices(values=tuple(preset_names)))))
