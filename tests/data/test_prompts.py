"""How questions are asked, and where an answer ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.facts import Fact
from data.prompts import PROMPT_STYLES, cut_answer, fact_prompts, put_question

FACT = Fact(
    question="Q?",
    answer="A",
    aliases=("B",),
    novel_validation=("V1?", "V2?"),
    novel_test=("T1?",),
    reverse_question="R?",
    reverse_answer="RA",
    templated=True,
)


def test_the_four_prompt_styles() -> None:
    assert put_question("Q?", "plain") == "Q?\n"
    assert put_question("Q?", "qna") == "Question: Q?\nAnswer:"
    assert put_question("Q?", "conversation") == "Joe: Q?\nBrandine:"
    assert put_question("Q?", "assistant") == "Assistant is a helpful AI.\nJoe: Q?\nAssistant:"


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        (" Ada Lovelace", "Ada Lovelace"),
        ("\nAda", "Ada"),
        (" Ada\nJoe: And who else?", "Ada"),
        (" Ada\nQuestion: Next?\nAnswer: Bob", "Ada"),
        (" Ada\nWho was second?\nBob", "Ada"),
        (" Ada\n\nBob", "Ada"),
        (" Ada,\nthe first", "Ada,\nthe first"),
        (" Joe: is a name", "Joe: is a name"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_an_answer_ends_at_the_next_speaker_or_question(generated: str, answer: str) -> None:
    assert cut_answer(generated) == answer


@given(st.text(max_size=80))
def test_cutting_twice_changes_nothing(text: str) -> None:
    assert cut_answer(cut_answer(text)) == cut_answer(text)


def test_every_phrasing_is_asked_in_every_style_with_what_is_right() -> None:
    prompts = fact_prompts([FACT], ("trained", "validation", "test", "reverse", "two_hop"))
    assert len(prompts) == (1 + 2 + 1 + 1 + 0) * len(PROMPT_STYLES)
    reverse = [p for p in prompts if p.phrasing == "reverse"]
    assert {p.accepted for p in reverse} == {("RA",)}
    assert {p.accepted for p in prompts if p.phrasing == "validation"} == {("A", "B")}
    assert {p.phrasing for p in prompts if p.templated} == {"validation", "test"}
    assert len({p.id for p in prompts}) == len(prompts)
