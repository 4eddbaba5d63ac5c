"""What a single setting may be: one value, a list of values, or a range; and drawing from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from data.recipes import SettingError

Value = str | int | float | bool


class SuggestingTrial(Protocol):
    """The part of Optuna's trial that a search space uses."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """All numbers from `low` to `high`, both included; whole numbers when both bounds are.

    `log` draws evenly over orders of magnitude.
    """

    low: int | float
    high: int | float
    log: bool = False

    def check(self, name: str) -> None:
        """Refuse an empty range and a logarithm of nothing.

        Raises:
            SettingError: Naming the setting and its bounds.
        """
        if self.low > self.high:
            raise SettingError(
                f"{name}: the range from {self.low} to {self.high} is empty; "
                "low must be at most high"
            )
        if self.log and self.low <= 0:
            raise SettingError(
                f"{name}: low = {self.low} is not allowed with log; it must be above 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """One of the listed values; a single one is fixed and not searched."""

    values: tuple[Value, ...]

    def check(self, name: str) -> None:
        """Refuse an empty list and a value listed twice.

        Raises:
            SettingError: Naming the setting.
        """
        if not self.values:
            raise SettingError(f"{name}: the list is empty; name at least one value")
        if len(set(self.values)) < len(self.values):
            raise SettingError(f"{name}: {list(self.values)} names a value twice")


Setting = Range | Choices


def fixed(value: Value) -> Choices:
    """Return a setting that is not searched."""
    return Choices(values=(value,))


def bounds(setting: Setting) -> tuple[Value, ...]:
    """Return the values to check: both ends of a range, or every choice."""
    return (setting.low, setting.high) if isinstance(setting, Range) else setting.values


def contains(setting: Setting, value: Value) -> bool:
    """Return whether a trial could have this value."""
    match setting:
        case Range(low=low, high=high):
            return isinstance(value, int | float) and low <= value <= high
        case Choices(values=values):
            return value in values


def is_searched(setting: Setting) -> bool:
    """Return whether there is anything to choose."""
    return len(set(bounds(setting))) > 1


def require_whole_number(name: str, value: object) -> None:
    """Refuse anything but a whole number.

    Raises:
        SettingError: Naming the setting.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(f"{name}: {value!r} is not allowed; it must be a whole number")


def require_number(name: str, value: object) -> None:
    """Refuse anything but a number.

    Raises:
        SettingError: Naming the setting.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(f"{name}: {value!r} is not allowed; it must be a number")


def require_truth_value(name: str, value: object) -> None:
    """Refuse anything but true and false.

    Raises:
        SettingError: Naming the setting.
    """
    if not isinstance(value, bool):
        raise SettingError(f"{name}: {value!r} is not allowed; write true or false")


def suggest(trial: SuggestingTrial, name: str, setting: Setting) -> Value:
    """Return the trial's value of a setting; a fixed one is not asked for."""
    match setting:
        case Choices(values=(value,)):
            return value
        case Choices(values=values):
            return trial.suggest_categorical(name, values)
        case Range(low=int() as low, high=int() as high, log=log):
            return trial.suggest_int(name, low, high, step=1, log=log)
        case Range(low=low, high=high, log=log):
            return trial.suggest_float(name, low, high, log=log)
