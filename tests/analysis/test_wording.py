"""How numbers and untrusted text are said."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import wording
from data.measurements import NOT_MEASURED, Estimate
from data.recipes import GREEDY, Sampling


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0 %"),
        (0.004, "0.4 %"),
        (0.125, "12 %"),
        (0.93, "93 %"),
        (0.997, "99.7 %"),
        (1.0, "100 %"),
        (-0.02, "-2 %"),
        (None, "not measured"),
    ],
)
def test_a_share_is_whole_percents_unless_that_hides_something(
    value: float | None, said: str
) -> None:
    assert wording.say_share(value) == said


def test_an_estimate_carries_its_interval() -> None:
    seen = Estimate(value=0.93, low=0.84, high=0.97, count=23)

    assert wording.say_estimate(seen) == "93 % (84–97 %)"
    assert wording.say_estimate_in_words(seen) == "93 % (95 % interval 84–97 %)"


def test_an_interval_without_width_is_one_number() -> None:
    assert wording.say_estimate(Estimate(value=1.0, low=1.0, high=1.0, count=3)) == "100 % (100 %)"


def test_what_was_not_measured_is_never_a_number() -> None:
    for said in (
        wording.say_estimate(NOT_MEASURED),
        wording.say_estimate_in_words(NOT_MEASURED),
        wording.say_range(NOT_MEASURED),
        wording.say_count(None),
        wording.say_decimal(None),
        wording.say_duration(None),
    ):
        assert said == "not measured"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (2.345, "2.3 s"),
        (48.2, "48 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, said: str) -> None:
    assert wording.say_duration(seconds) == said


@pytest.mark.parametrize(
    ("rate", "said"), [(3e-4, "3e-4"), (0.0015, "1.5e-3"), (0.01, "1e-2"), (1.0, "1e0")]
)
def test_a_learning_rate_is_said_as_people_write_it(rate: float, said: str) -> None:
    assert wording.say_learning_rate(rate) == said


def test_a_sampling_says_only_what_it_changes() -> None:
    assert wording.say_sampling(GREEDY) == "greedy"
    assert wording.say_sampling(Sampling(name="plain")) == "plain"
    assert (
        wording.say_sampling(Sampling(name="warm", temperature=0.7, top_p=0.9))
        == "warm (temperature 0.7, top-p 0.9)"
    )


def test_control_and_direction_characters_are_shown_instead_of_acting() -> None:
    assert wording.show_text("a\x1b[31mred\u202eb\x07") == r"a\x1b[31mred\u202eb\x07"
    assert wording.show_text("two\n lines\r\n here ") == "two lines here"


@given(st.text())
def test_shown_text_is_one_line_of_visible_characters(text: str) -> None:
    shown = wording.show_text(text)

    assert not any(
        unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs") for character in shown
    )
    assert len(shown.splitlines()) <= 1
