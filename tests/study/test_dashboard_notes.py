"""Notes show what was said and let nothing of it take effect; notes and figures stay small."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from analysis.wording import show_text
from data.measurements import Answer, Verdict
from data.prompts import Prompt, put_question
from study.dashboard.escaping import escape_markdown, quote_lines
from study.dashboard.figures import draw_small, shrink
from study.dashboard.notes import LONGEST_NOTE, MOST_NOTES, write_study_note, write_trial_notes
from study.place import Place
from tests.analysis.conftest import StudyMaker
from tests.study.dashboard_study import RUDE

if TYPE_CHECKING:
    from pathlib import Path

WORD_JOINER = "\u2060"
texts = st.text(
    alphabet=st.sampled_from("a1 .:-+*_#`~<>[]()!|$&;\\/@=\"'{}\n\twwwhttps"), max_size=80
) | st.text(max_size=80)


@pytest.fixture
def maker() -> StudyMaker:
    return StudyMaker()


@pytest.fixture
def three_trials(maker: StudyMaker) -> StudyMaker:
    """Return a study whose front is trial 0 after 8 epochs, and trial 1 after 8 and after 4."""
    maker.add((4, 0.50, 0.20), (8, 0.90, 0.30))
    maker.add((4, 0.40, 0.01), (8, 0.85, 0.02), rehearsal=3)
    return maker.add((4, 0.04, 0.00), state="pruned", reason="recall 4 % is below the reference")


def parse(markdown: str) -> list[Token]:
    """Return the tokens of Markdown as the dashboard reads it, raw HTML and tables included."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [
        token
        for block in parser.parse(markdown)
        for token in (block.children if block.type == "inline" and block.children else [block])
    ]


class TestEscaping:
    @given(texts)
    def test_any_text_is_one_paragraph_of_just_its_characters(self, text: str) -> None:
        tokens = parse(f"{escape_markdown(text)}")
        kinds = {token.type for token in tokens}
        assert kinds <= {"paragraph_open", "text", "paragraph_close", "text_special"}
        shown = "".join(token.content for token in tokens if token.type.startswith("text"))
        assert shown.replace(WORD_JOINER, "") == show_text(text)

    @pytest.mark.parametrize(
        "address", ["http://a.example/b", "https://a.example", "www.a.example", "a@b.example"]
    )
    def test_no_bare_address_is_left_to_be_made_a_link(self, address: str) -> None:
        escaped = escape_markdown(f"see {address}")
        shown = "".join(token.content for token in parse(escaped))
        assert address not in shown
        assert address in shown.replace(WORD_JOINER, "")

    @given(texts)
    def test_a_quoted_text_stays_within_its_block(self, text: str) -> None:
        block = quote_lines([("before", text), ("after", text)], longest=200)
        tokens = parse(f"{block}\n\nnext")
        assert [token.type for token in tokens] == [
            "fence",
            "paragraph_open",
            "text",
            "paragraph_close",
        ]
        shown = "".join(tokens[0].content.split())
        assert shown == "".join(f"before{show_text(text)}after{show_text(text)}".split())

    def test_a_long_text_is_cut_and_wrapped(self) -> None:
        block = quote_lines([("after", "x" * 300)], longest=200)
        lines = block.splitlines()[1:-1]
        assert sum(line.count("x") for line in lines) == 199
        assert lines[-1].endswith("…")
        assert max(map(len, lines)) <= 88


class TestTrialNotes:
    def test_the_recommended_member_shows_its_answers(self, three_trials: StudyMaker) -> None:
        findings = three_trials.findings()
        notes = write_trial_notes(findings, lambda _: verdicts(RUDE))
        assert [*notes] == [0, 1]  # highest recall first; the pruned trial is not on the front
        assert "after 8 epochs: recall 85 % (80–90 %), knowledge loss 2 % (0–7 %)" in notes[1]
        assert "recommended" in notes[1]
        assert notes[1].count("question") == 4

    def test_confirmed_members_say_what_became_of_them(self, maker: StudyMaker) -> None:
        maker.add((8, 0.9, 0.05), repeated=[(0.7, 0.04), (0.8, 0.06)])
        (note,) = write_trial_notes(maker.findings(), lambda _: ()).values()
        assert "trained again with 2 fresh seeds: recall 75 % (" in note
        assert "Questions" not in note

    def test_a_pruned_member_says_why_and_nothing_of_it_takes_effect(
        self, maker: StudyMaker
    ) -> None:
        maker.add((4, 0.9, 0.05), state="pruned", reason=RUDE)
        (note,) = write_trial_notes(maker.findings(), lambda _: ()).values()
        assert "The trial was pruned after 4 epochs: " in note
        kinds = {token.type for token in parse(note)}
        assert kinds.isdisjoint(
            {"html_inline", "html_block", "link_open", "image", "code_inline", "heading_open"}
        )

    def test_there_are_at_most_thirty_and_none_is_long(self, maker: StudyMaker) -> None:
        for step in range(40):  # every trial is on the front
            maker.add((4, 0.1 + step / 100, 0.01 + step / 100))
        notes = write_trial_notes(maker.findings(), lambda _: verdicts("word " * 500))
        assert len(notes) == MOST_NOTES
        assert {len(note) <= LONGEST_NOTE for note in notes.values()} == {True}
        assert next(iter(notes)) == 39
        assert {note.count("question") for note in notes.values()} == {4}

    def test_a_note_that_is_too_long_loses_examples_last_first(self, maker: StudyMaker) -> None:
        maker.add((4, 0.9, 0.05))
        (note,) = write_trial_notes(
            maker.findings(), lambda _: verdicts("word " * 500, question="Who? " * 200)
        ).values()
        assert len(note) <= LONGEST_NOTE
        assert note.count("```") % 2 == 0
        assert "after 4 epochs" in note


class TestStudyNote:
    def test_it_says_what_was_found_and_how_to_go_on(
        self, three_trials: StudyMaker, tmp_path: Path
    ) -> None:
        findings = three_trials.findings()
        note = write_study_note(findings, place(tmp_path, "a study"))
        assert note.startswith(f"**{findings.conclusion.sentence.split(chr(46))[0]}.")
        assert "- trial 1, after 8 epochs: recall 85 %" in note
        assert f"`remember report --name 'a study' --out {tmp_path}`" in note
        assert len(note) <= LONGEST_NOTE

    def test_without_a_front_it_says_so_and_how_to_go_on(
        self, maker: StudyMaker, tmp_path: Path
    ) -> None:
        note = write_study_note(maker.findings(), place(tmp_path, "empty"))
        assert note.startswith("**Cannot tell. No trial was run.**")
        assert "larger `--trials`" in note
        assert "export" not in note

    def test_it_holds_no_password(self, three_trials: StudyMaker, tmp_path: Path) -> None:
        elsewhere = Place(
            name="study",
            folder=tmp_path / "study",
            storage_url="postgresql://me:secret@host/db",
        )
        note = write_study_note(three_trials.findings(), elsewhere)
        assert "secret" not in note
        assert "--storage …" in note


class TestFigures:
    def test_a_small_figure_keeps_all_its_points(self, three_trials: StudyMaker) -> None:
        small = draw_small(three_trials.findings())
        assert small.dropped == ()
        curves = json.loads(small.figures["remember-recall-curves"])["data"]
        assert sorted(len(trace["x"]) for trace in curves) == [1, 2, 2]
        assert all(text.count("<br>") <= 2 for trace in curves for text in trace["hovertext"])

    def test_large_studies_are_thinned_to_the_bound_and_keep_their_front(
        self, maker: StudyMaker
    ) -> None:
        for step in range(100):
            maker.add(*((epoch, 0.5, 0.3) for epoch in range(1, 21)), rank=step + 1)
        maker.add((4, 0.9, 0.1), (8, 0.95, 0.2))
        small = draw_small(maker.findings())
        assert small.dropped == ()
        assert max(len(text) for text in small.figures.values()) <= 60_000
        assert sum(len(text) for text in small.figures.values()) <= 300_000
        front = {
            trace.get("name"): trace
            for trace in json.loads(small.figures["remember-front"])["data"]
        }
        assert front["front without rehearsal"]["y"] == [0.9, 0.95, 0.95]
        assert front["recommended"]["y"] == [0.9]
        curves = json.loads(small.figures["remember-recall-curves"])["data"]
        assert curves[-1]["y"] == [0.9, 0.95]

    def test_what_stays_too_large_is_dropped_and_the_rest_kept(
        self, three_trials: StudyMaker
    ) -> None:
        findings = three_trials.findings()
        assert len(draw_small(findings, most_bytes_each=10).dropped) == 7
        all_of_them = draw_small(findings)
        front = len(all_of_them.figures["remember-front"])
        only_front = draw_small(findings, most_bytes_together=front)
        assert [*only_front.figures] == ["remember-front"]
        assert only_front.dropped[0] == "remember-recall-curves"

    def test_thinning_keeps_both_ends_of_a_curve(self) -> None:
        figure = go.Figure(go.Scatter(x=[*range(1000)], y=[*range(1000)]))
        text = shrink(figure, 9000)
        assert text is not None
        (trace,) = json.loads(text)["data"]
        assert (trace["x"][0], trace["x"][-1]) == (0, 999)
        assert trace["x"] == trace["y"]
        assert 13 <= len(trace["x"]) < 600


def place(out: Path, name: str) -> Place:
    return Place(name=name, folder=out / name, storage_url=f"sqlite:///{out / 'remember.db'}")


def verdicts(said: str, question: str = "Who is it?") -> list[Verdict]:
    return [
        Verdict(
            answer=Answer(
                prompt=Prompt(
                    text=put_question(question, "qna"),
                    style="qna",
                    phrasing="validation",
                    subject=str(number),
                    question=question,
                    accepted=("Ada Quill",),
                ),
                text=said,
                tokens=4,
            ),
            label="incorrect",
            judge="matcher",
        )
        for number in range(6)
    ]
