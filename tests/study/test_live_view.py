"""What a run leaves on the screen."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from study.live_view import LiveView
from study.watching import Effort


def say(effort: Effort) -> str:
    console = Console(file=StringIO(), width=200)
    with LiveView(console, trials=4, ended=0) as view:
        view.sitting_ended(effort)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_speed_of_a_sitting_is_said_with_its_padding() -> None:
    effort = Effort(
        slots=8,
        trained_tokens=120_000,
        training_seconds=60,
        asking_seconds=30,
        padding_share=0.071,
    )
    said = say(effort)
    assert "120,000 tokens trained in" in said
    assert "(2,000 a second, 8 at once, 7% of it padding)" in said
    assert "asked in" in said


@pytest.mark.parametrize("share", [None, 0.0])
def test_a_sitting_that_trained_nothing_says_nothing(share: float | None) -> None:
    assert say(Effort(slots=8, padding_share=share)) == ""
