"""What the terminal shows, with model output that cannot act on it."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from analysis.examples import pair_verdicts
from analysis.tables import show_front, show_studies, show_trial
from data.measurements import Answer, Verdict
from data.prompts import Prompt
from storage.records import StudySummary

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker


def shown(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    console.print(renderable)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_front_table_begins_with_the_base_and_marks_the_recommended_member(
    three_trials: StudyMaker,
) -> None:
    rows = [line.split() for line in shown(show_front(three_trials.findings())).splitlines()]

    assert [row[:2] for row in rows[1:5]] == [["base", "–"], ["0", "8"], ["1", "*"], ["1", "4"]]
    assert "recommended; in brackets 95 %" in " ".join(rows[5])


def test_an_empty_front_is_said(maker: StudyMaker) -> None:
    assert "No point of this study beats the reference." in shown(show_front(maker.findings()))


def test_a_trials_page_shows_settings_curve_costs_and_answers(maker: StudyMaker) -> None:
    findings = maker.add((4, 0.5, 0.1), state="pruned", reason="behind the others").findings()
    prompt = Prompt(
        text="Who?\n",
        style="plain",
        phrasing="test",
        subject="s",
        question="Who?",
        accepted=("Ann",),
    )
    before = Verdict(
        answer=Answer(prompt=prompt, text="Bob", tokens=1), label="incorrect", judge="m"
    )
    after = Verdict(
        answer=Answer(prompt=prompt, text="[red]Ann[/nope]\x1b]0;title\x07", tokens=1),
        label="correct",
        judge="m",
    )
    text = shown(
        show_trial(findings.record.trials[0], findings.base, pair_verdicts([before], [after]))
    )

    assert "Trial 0: pruned (behind the others)" in text
    assert "1e-3" in text
    assert "50 % (45–55 %)" in text
    assert "4,000 tokens trained, 100 generated, 10 s" in text
    assert r"[red]Ann[/nope]\x1b]0;title\x07" in text
    assert "Bob" in text
    assert "\x1b" not in text


def test_a_running_trial_has_a_page_without_costs(maker: StudyMaker) -> None:
    findings = maker.add((4, None, None), state="running").findings()
    text = shown(show_trial(findings.record.trials[0], findings.base, ()))

    assert "not measured" in text
    assert "tokens trained," not in text


def test_studies_are_listed_with_their_trials_counted() -> None:
    summary = StudySummary(
        name="[bold]oscars",
        slots=4,
        seed=7,
        created_at=datetime(2025, 3, 2, 9, 30, tzinfo=UTC),
        trials={"complete": 16, "pruned": 23, "failed": 1},
    )
    text = shown(show_studies((summary,)))

    assert text.splitlines()[1].split() == [
        *("[bold]oscars", "2025-03-02", "09:30"),
        *("16", "23", "1", "0"),
    ]


def test_an_empty_database_is_said() -> None:
    assert "no study" in shown(show_studies(()))
