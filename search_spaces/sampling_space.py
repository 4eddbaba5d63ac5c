"""The sampling settings a trial may choose, and the function from a trial to its sampling.

Either one of several presets, or settings one by one ("matrix"): each that is named is searched,
and all others are off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from data.recipes import TRUNCATIONS, Sampling, SettingError
from search_spaces.presets import DEFAULT_PRESETS, find_preset, name_presets
from search_spaces.settings import (
    Choices,
    Range,
    Setting,
    Value,
    bounds,
    contains,
    fixed,
    is_searched,
    require_number,
    require_truth_value,
    require_whole_number,
    suggest,
)

MATRIX = "matrix"

# In Optuna's table the settings of a matrix are told from a recipe's by this.
_PREFIX = "sampling."

_WHOLE_NUMBERS = (
    "top_k",
    "no_repeat_ngram_size",
    "num_beams",
    "num_return_sequences",
    "min_length",
    "max_new_tokens",
)
_NO_BEAMS_WITH = ("mirostat_tau", "penalty_alpha", "xtc_probability")
_TRUTH_VALUES = ("do_sample", "temperature_last", "early_stopping")

# What gives others no say comes first.
_DECIDING = ("do_sample", "penalty_alpha", "mirostat_tau")
_SETTINGS = (
    *_DECIDING,
    *(each.name for each in fields(Sampling) if each.name not in ("name", *_DECIDING)),
)
_ONLY_WHEN_DRAWING = (
    "temperature",
    "dynatemp",
    "temperature_last",
    "xtc_threshold",
    "num_return_sequences",
    "mirostat_tau",
    "mirostat_eta",
)

# What a setting has to go with to be tried alone.
_ALONE: Mapping[str, Mapping[str, Value]] = {
    "do_sample": {},
    "penalty_alpha": {"do_sample": False, "top_k": 4},
    "dynatemp": {"do_sample": True, "temperature": 1e9},
}

# What a matrix searches where the study file does not say otherwise: what the presets vary most.
DEFAULT_MATRIX: Mapping[str, Setting] = {
    "do_sample": Choices(values=(False, True)),
    "temperature": Range(low=0.1, high=2.0),
    "top_k": Choices(values=(0, 20, 50, 100)),
    "top_p": Range(low=0.1, high=1.0),
    "typical_p": Range(low=0.2, high=1.0),
    "repetition_penalty": Range(low=1.0, high=1.3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpace:
    """What a trial's sampling may be: a preset of `presets`, or what `matrix` allows if given.

    Families among the presets are replaced by their own.

    Raises:
        SettingError: When it is made, if a preset or a setting does not exist, a value is out of
            its bounds or a range is empty.
    """

    presets: tuple[str, ...] = DEFAULT_PRESETS
    matrix: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "presets", name_presets(self.presets))
        for name, setting in self.matrix.items():
            if name not in _SETTINGS:
                raise SettingError(
                    f"sampling_matrix: there is no setting {name!r}; the settings are "
                    f"{', '.join(_SETTINGS)}"
                )
            setting.check(name)
            for value in bounds(setting):
                # Alone, so that what may not be combined is no error before it is.
                _make_sampling({**_ALONE.get(name, {"do_sample": True}), name: value})
        self._require_room_for_contrastive_search()
        self._require_one_way_of_decoding()
        self._require_temperatures_above_nothing()

    def _require_room_for_contrastive_search(self) -> None:
        """Refuse contrastive search where tokens are always drawn, or with one candidate."""
        if not any(value != 0 for value in bounds(self.matrix.get("penalty_alpha", fixed(0.0)))):
            return
        if all(bounds(self.matrix.get("do_sample", fixed(True)))):
            raise SettingError(
                "sampling_matrix: penalty_alpha has a say only where nothing is drawn; search "
                "do_sample = [false, true], or set it to false"
            )
        fewest = min(int(value) for value in bounds(self.matrix.get("top_k", fixed(0))))
        if fewest < 2:
            raise SettingError(
                f"sampling_matrix: top_k: {fewest} is not allowed with penalty_alpha, which "
                "compares top_k candidates; it must be at least 2"
            )

    def _require_one_way_of_decoding(self) -> None:
        """Refuse beams that could never be, because something else always decides the tokens."""
        beams = bounds(self.matrix.get("num_beams", fixed(1)))
        for name in _NO_BEAMS_WITH:
            if min(map(int, beams)) > 1 and 0 not in bounds(self.matrix.get(name, fixed(0))):
                raise SettingError(
                    f"sampling_matrix: num_beams: {beams[0]} is not allowed with {name}; leave "
                    "one of them out, or list 0 among the values of the latter"
                )

    def _require_temperatures_above_nothing(self) -> None:
        """Refuse a temperature that could fall to 0 where the entropy is lowest."""
        span = max(map(float, bounds(self.matrix.get("dynatemp", fixed(0.0)))))
        lowest = min(map(float, bounds(self.matrix.get("temperature", fixed(1.0)))))
        if span >= lowest:
            raise SettingError(
                f"sampling_matrix: dynatemp: {span:g} is not allowed; it must be below the lowest "
                f"temperature, {lowest:g}"
            )

    def require(self, preset: str) -> dict[str, Value]:
        """Return a preset as settings of a trial, none if it is the only one.

        Raises:
            SettingError: If no trial could have it.
        """
        if self.matrix:
            raise SettingError(
                "start: a point cannot name its sampling where every setting is searched by "
                "itself; leave it out"
            )
        if preset not in self.presets:
            raise SettingError(
                f"sampling: {preset!r} is not allowed; in this study it must be one of "
                f"{', '.join(self.presets)}"
            )
        return self.fit(preset)

    def fit(self, preset: str) -> dict[str, Value]:
        """Return a preset as settings of a trial: nothing of it that the space does not allow."""
        if not self.matrix:
            is_one_of_several = len(self.presets) > 1 and preset in self.presets
            return {"sampling": preset} if is_one_of_several else {}
        sampling = find_preset(preset)
        return {
            _PREFIX + name: getattr(sampling, name)
            for name, setting in self.matrix.items()
            if is_searched(setting) and contains(setting, getattr(sampling, name))
        }


def suggest_sampling(trial: Any, space: SamplingSpace) -> Sampling:
    """Return the sampling that a trial chooses from a space; what is fixed is not asked for.

    Nor is what has no say: any but penalties where nothing is drawn (and `top_k` where candidates
    are compared), and what narrows the choice under mirostat.

    Args:
        trial: Anything with Optuna's suggest methods.
        space: What may be chosen.
    """
    if not space.matrix:
        return find_preset(str(suggest(trial, "sampling", Choices(values=space.presets))))
    values: dict[str, Value] = {}
    for name in _SETTINGS:
        if name in space.matrix and not _is_idle(name, values):
            values[name] = suggest(trial, _PREFIX + name, space.matrix[name])
    return _make_sampling(values)


def _is_idle(name: str, chosen: Mapping[str, Value]) -> bool:
    """Return whether a setting has no say, given those that were chosen before it."""
    draws = chosen.get("do_sample", True)
    if name == "penalty_alpha":
        return bool(draws)
    if name == "num_beams":
        return any(chosen.get(other) for other in _NO_BEAMS_WITH)
    if name in ("length_penalty", "early_stopping"):
        return chosen.get("num_beams", 1) == 1
    if name == "top_k" and chosen.get("penalty_alpha"):
        return False
    if name in TRUNCATIONS:
        return not draws or bool(chosen.get("mirostat_tau"))
    return name in _ONLY_WHEN_DRAWING and not draws


def _make_sampling(values: Mapping[str, Any]) -> Sampling:
    """Return a sampling of plain values.

    Raises:
        SettingError: If a value is out of its bounds or of another kind.
    """
    for name, value in values.items():
        if name in _TRUTH_VALUES:
            require_truth_value(name, value)
            continue
        require_number(name, value)
        if name in _WHOLE_NUMBERS:
            require_whole_number(name, value)
    return Sampling(name=MATRIX, **values)
