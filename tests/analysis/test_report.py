"""The report is one page that says what was found, loads nothing, and lets nothing act."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from analysis.report import render_report, write_report
from analysis.verdict import Subject
from data.facts import Fact
from data.measurements import Answer, Verdict
from data.prompts import Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from analysis.findings import Findings
    from tests.analysis.conftest import StudyMaker

HOSTILE = '<script>alert("x")</script><img src=https://evil.example/x>\x1b[31m'
VERSIONS = {"remember-me": "0.1.0"}


class Page(HTMLParser):
    """Collects a page's elements, its loading attributes, and its text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.hidden = tag in ("script", "style")
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.text += data.replace("\u00a0", " ")


def no_verdicts(measurement_id: int) -> Sequence[Verdict]:
    return ()


def open_report(findings: Findings) -> Page:
    return Page(render_report(findings, verdicts_of=no_verdicts, versions=VERSIONS))


@pytest.fixture
def hostile_verdicts() -> tuple[Verdict, Verdict]:
    prompt = Prompt(
        text="Who?\n",
        style="plain",
        phrasing="validation",
        subject="s",
        question=f"Who? {HOSTILE}",
        accepted=("Ann",),
        templated=True,
    )
    before = Verdict(
        answer=Answer(prompt=prompt, text="Bob", tokens=1), label="incorrect", judge="matcher"
    )
    after = Verdict(
        answer=Answer(prompt=prompt, text=f"Ann {HOSTILE}", tokens=9),
        label="correct",
        judge="matcher",
    )
    return before, after


def test_the_page_says_what_was_found(three_trials: StudyMaker) -> None:
    page = open_report(three_trials.findings())

    assert "Yes. Trial 1 after 8 epochs answers 85 % (95 % interval 80–90 %)" in page.text
    assert "recall 4 % is below the reference" in page.text
    assert "adapters/1-8" in page.text
    assert "0a1b2c3d4e5f" in page.text
    assert "remember-me 0.1.0" in page.text


def test_the_page_loads_nothing_from_anywhere(three_trials: StudyMaker) -> None:
    page = open_report(three_trials.findings())

    assert page.loads == []
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(page.elements)


def test_the_page_forbids_itself_the_network(three_trials: StudyMaker) -> None:
    html = render_report(three_trials.findings(), verdicts_of=no_verdicts, versions={})

    assert "default-src 'none'" in html[: html.index("<script")]


def test_plotly_is_inlined_once(three_trials: StudyMaker) -> None:
    html = render_report(three_trials.findings(), verdicts_of=no_verdicts, versions={})

    assert html.count("plotly.js v") == 1
    assert len(html) < 8_000_000


def test_model_output_is_shown_and_does_not_act(
    three_trials: StudyMaker, hostile_verdicts: tuple[Verdict, Verdict]
) -> None:
    findings = three_trials.findings()
    before, after = hostile_verdicts
    assert findings.record.base is not None
    base_id = findings.record.base.id

    def verdicts_of(measurement_id: int) -> Sequence[Verdict]:
        return (before,) if measurement_id == base_id else (after,)

    plain = open_report(findings)
    page = Page(render_report(findings, verdicts_of=verdicts_of, versions=VERSIONS))

    assert page.elements.count("script") == plain.elements.count("script")
    assert page.loads == []
    assert 'Ann <script>alert("x")</script>' in page.text
    assert r"\x1b[31m" in page.text
    assert "\x1b" not in page.text
    assert "templated" in page.text


def test_hostile_names_do_not_act(maker: StudyMaker) -> None:
    subject = Subject(
        model=HOSTILE,
        new=(Fact(question="a", answer="b"),),
        known=(Fact(question=HOSTILE, answer="b"),),
    )
    maker.add((4, 0.9, 0.02)).add((4, 0.0, 0.0), state="failed", reason=HOSTILE)
    page = open_report(maker.findings(subject=subject))

    assert page.loads == []
    assert "img" not in page.elements
    assert page.text.count("<img src=https://evil.example/x>") == 3


def test_what_was_not_measured_is_said(maker: StudyMaker) -> None:
    page = open_report(maker.add((4, 0.9, 0.02)).findings())

    assert "asked in reversenot measured" in "".join(page.text.split("\n"))


def test_templated_wordings_are_marked(maker: StudyMaker) -> None:
    facts = (Fact(question="a", answer="b", templated=True), Fact(question="c", answer="d"))
    subject = Subject(model="m", new=facts, known=())
    page = open_report(maker.add((4, 0.9, 0.02)).findings(subject=subject))

    assert "Templated: of 1 of 2 facts" in page.text


def test_what_the_kept_wordings_gave_is_shown_instead_of_the_warning(maker: StudyMaker) -> None:
    warned = open_report(maker.add((4, 0.9, 0.02)).findings())
    maker.trials.clear()
    confirmed = open_report(maker.add((4, 0.9, 0.02), confirmed=(0.77, 0.03)).findings())

    assert "its figures flatter it a little" in warned.text
    assert "its figures flatter it a little" not in confirmed.text
    assert "it answers 77 % (72–82 %) right" in confirmed.text


def test_a_study_in_which_nothing_beats_the_reference_is_reported(maker: StudyMaker) -> None:
    page = open_report(maker.add((4, 0.0, 0.0), state="pruned", reason="no recall").findings())

    assert "No point of this study beats the reference" in page.text
    assert "no recall" in page.text


@pytest.mark.parametrize("has_base", [True, False])
def test_a_study_without_trials_is_reported(maker: StudyMaker, has_base: bool) -> None:
    page = open_report(maker.findings(has_base=has_base))

    assert "Cannot tell." in page.text
    assert "No trial was pruned, and none failed." in page.text


def test_the_file_is_written_whole_over_an_older_one(
    three_trials: StudyMaker, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "report.html"
    out.parent.mkdir()
    out.write_text("old")
    write_report(three_trials.findings(), verdicts_of=no_verdicts, versions={}, out=out)

    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
