"""RESULTS.md says the same in Markdown, and nothing in it acts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from analysis.results_markdown import escape_markdown, render_results, write_results
from analysis.wording import show_text
from data.measurements import Answer, Verdict
from data.prompts import Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from analysis.findings import Findings
    from tests.analysis.conftest import StudyMaker


def ask(text: str) -> Verdict:
    prompt = Prompt(
        text="Who?\n",
        style="plain",
        phrasing="validation",
        subject="s",
        question="Who | why?",
        accepted=("Ann",),
    )
    return Verdict(answer=Answer(prompt=prompt, text=text, tokens=1), label="correct", judge="m")


def render(findings: Findings, text: str = "Ann") -> str:
    def verdicts_of(measurement_id: int) -> Sequence[Verdict]:
        return (ask(text),)

    return render_results(findings, verdicts_of=verdicts_of, versions={"remember-me": "0.1.0"})


def test_the_front_stands_beside_the_base_with_the_recommended_member_marked(
    three_trials: StudyMaker,
) -> None:
    lines = render(three_trials.findings()).splitlines()
    first = lines.index(next(line for line in lines if line.startswith("| trial |")))

    assert [line.split(" | ")[:4] for line in lines[first + 2 : first + 6]] == [
        ["| base", "–", "0 % (0–5 %)", "0 %"],
        ["| 0", "8", "90 % (85–95 %)", "30 % (25–35 %)"],
        ["| **1**", "8", "85 % (80–90 %)", "2 % (0–7 %)"],
        ["| 1", "4", "40 % (35–45 %)", "1 % (0–6 %)"],
    ]


def test_every_table_row_has_as_many_cells_as_its_header(three_trials: StudyMaker) -> None:
    text = render(three_trials.findings(), "a | b\n| c | <b>d</b> `|`")
    widths: list[set[int]] = [set()]
    for line in text.splitlines():
        if line.startswith("| "):
            widths[-1].add(line.replace(r"\|", "").count("|"))
        elif widths[-1]:
            widths.append(set())

    assert [len(width) for width in widths if width] == [1, 1, 1, 1, 1]


def test_model_text_cannot_become_markup(three_trials: StudyMaker) -> None:
    hostile = "<img src=https://evil.example> ![x](https://evil.example) [y](z) **b** `c` # d"
    html = (
        MarkdownIt("commonmark").enable("table").render(render(three_trials.findings(), hostile))
    )

    assert "<img" not in html
    assert "<a " not in html
    assert "![x](https://evil.example)" in html


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_escaped_text_is_shown_as_it_is_inside_a_table_cell(text: str) -> None:
    table = f"| a | b |\n| --- | --- |\n| x{escape_markdown(text)}x | last |"
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    cells = [
        "".join(child.content for child in token.children or ())
        for token in tokens
        if token.type == "inline"
    ]

    assert cells == ["a", "b", f"x{show_text(text)}x", "last"]


def test_a_study_without_a_front_or_without_trials_says_so(maker: StudyMaker) -> None:
    assert "Cannot tell. No trial was run." in render(maker.findings())
    maker.add((4, 0.0, 0.0))
    text = render(maker.findings())

    assert "No point of this study beats the reference" in text
    assert "## What was forgotten\n\nnot measured" in text


def test_the_file_ends_with_one_line_break(three_trials: StudyMaker, tmp_path: Path) -> None:
    out = tmp_path / "RESULTS.md"
    write_results(three_trials.findings(), verdicts_of=lambda _: (), versions={}, out=out)

    assert out.read_text(encoding="utf-8").endswith("UTC\n- facts: 0a1b2c3d4e5f\n")
