"""Floors are shown beside the front wherever it is shown, or the reason why there is no figure."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from analysis.floors import FLOOR_TITLES, floor_rows
from analysis.report import render_report
from analysis.results_markdown import render_results
from analysis.tables import show_front
from analysis.wording import say_mean_tokens
from data.measurements import NOT_MEASURED, Estimate, Floor

if TYPE_CHECKING:
    from analysis.findings import Findings
    from tests.analysis.conftest import StudyMaker

HOSTILE = "<b>m|n\x1b[31m"
FLOORS = (
    Floor(
        name="base", recall=Estimate(value=0.0, low=0.0, high=0.05, count=23), context_tokens=0.0
    ),
    Floor(
        name="all facts",
        recall=NOT_MEASURED,
        context_tokens=None,
        reason=f"prompt and answer need 632 tokens, and {HOSTILE} reads at most 512",
    ),
    Floor(
        name="best fact",
        recall=Estimate(value=0.4, low=0.35, high=0.45, count=23),
        context_tokens=1234.5,
    ),
)


@pytest.fixture
def findings(three_trials: StudyMaker) -> Findings:
    three_trials.floors = FLOORS
    return three_trials.findings()


def in_terminal(findings: Findings) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    console.print(show_front(findings))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def in_report(findings: Findings) -> str:
    return render_report(findings, verdicts_of=lambda _: (), versions={})


def in_markdown(findings: Findings) -> str:
    return render_results(findings, verdicts_of=lambda _: (), versions={})


def test_every_floor_has_its_recall_and_its_context_beside_the_adapter(
    findings: Findings,
) -> None:
    assert FLOOR_TITLES == ("what answers", "context tokens per answer", "recall")
    rows = floor_rows(findings)
    assert [row[:2] for row in rows] == [
        ("untouched model", "0"),
        ("all facts in the prompt", "–"),
        ("the best-matching fact in the prompt", "1,234"),
        ("adapter of trial 1", "0"),
    ]
    assert [row[2] for row in rows if row[1] != "–"] == [
        "0 % (0–5 %)",
        "40 % (35–45 %)",
        "85 % (80–90 %)",
    ]
    assert rows[1][2].startswith("not measured: prompt and answer need 632 tokens")


def test_a_study_without_a_front_has_its_floors_alone(maker: StudyMaker) -> None:
    maker.floors = FLOORS
    assert len(floor_rows(maker.findings())) == 3


def test_a_study_without_floors_says_nothing_of_them(three_trials: StudyMaker) -> None:
    findings = three_trials.findings()
    assert floor_rows(findings) == ()
    for page in (in_terminal(findings), in_markdown(findings), in_report(findings)):
        assert "in the prompt" not in page


def test_every_page_shows_them(findings: Findings) -> None:
    for page in (in_terminal(findings), in_markdown(findings), in_report(findings)):
        for said in ("the best-matching fact in the prompt", "1,234", "not measured: prompt"):
            assert said in page


def test_a_reason_does_not_act_on_any_page(findings: Findings) -> None:
    assert "<b>m" not in in_report(findings)
    assert r"&lt;b&gt;m\|n" in in_markdown(findings)
    for page in (in_terminal(findings), in_markdown(findings), in_report(findings)):
        assert "\x1b" not in page


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(None, "–"), (0, "0"), (0.5, "0.5"), (9.94, "9.9"), (23.87, "24"), (12345.6, "12,346")],
)
def test_tokens_are_whole_where_a_decimal_says_nothing(tokens: float | None, said: str) -> None:
    assert say_mean_tokens(tokens) == said
