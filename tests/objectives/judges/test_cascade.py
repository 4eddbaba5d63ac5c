"""The cascade: whose word is final, who is asked what, and what disagreement means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from data.measurements import Answer, Label
from objectives.judges.base import Judge
from objectives.judges.cascade import Cascade
from objectives.judges.matcher import Matcher

MakeAnswer = Callable[..., Answer]


def test_what_the_matcher_accepts_or_calls_no_attempt_is_final(
    make_answer: MakeAnswer, scripted: Any
) -> None:
    first, second = (scripted(name, {}, otherwise="incorrect") for name in "ab")
    cascade = Cascade(Matcher(), [first, second])

    verdicts = cascade.judge(
        [make_answer("It was Brendan Fraser."), make_answer("I do not know."), make_answer("")]
    )

    assert [verdict.label for verdict in verdicts] == ["correct", "not_attempted", "not_attempted"]
    assert first.asked == second.asked == []


@pytest.mark.parametrize(
    ("one", "other", "label"),
    [
        ("correct", "correct", "correct"),
        ("incorrect", "incorrect", "incorrect"),
        ("correct", "incorrect", "unjudged"),
        ("incorrect", "correct", "unjudged"),
        ("unjudged", "correct", "unjudged"),
        ("correct", "unjudged", "unjudged"),
        ("unjudged", "unjudged", "unjudged"),
    ],
)
def test_what_the_matcher_refuses_is_decided_where_wordings_agree(
    make_answer: MakeAnswer, scripted: Any, one: Label, other: Label, label: Label
) -> None:
    first = scripted("a", {}, otherwise=one)
    second = scripted("b", {}, otherwise=other)

    (verdict,) = Cascade(Matcher(), [first, second]).judge([make_answer("the Whale's lead")])

    assert verdict.label == label
    assert first.asked == ["the Whale's lead"]
    assert second.asked == ([] if one == "unjudged" else first.asked)


def test_verdicts_keep_their_order_and_are_signed_by_all_parts(
    make_answer: MakeAnswer, scripted: Any
) -> None:
    texts = ["Butler", "Brendan Fraser", "the Whale's lead", "", "Farrell"]
    first = scripted("a", {"the Whale's lead": "correct"}, otherwise="incorrect")
    second = scripted(
        "b", {"the Whale's lead": "correct", "Farrell": "correct"}, otherwise="incorrect"
    )
    judge: Judge = Cascade(Matcher(), [first, second])
    answers = [make_answer(text) for text in texts]

    verdicts = judge.judge(answers)

    assert [verdict.answer for verdict in verdicts] == answers
    assert [verdict.label for verdict in verdicts] == [
        "incorrect",
        "correct",
        "correct",
        "not_attempted",
        "unjudged",
    ]
    assert {verdict.judge for verdict in verdicts} == {judge.name} == {"matcher, then a & b"}
    assert judge.judge([]) == ()


def test_it_needs_two_judges_that_differ(scripted: Any) -> None:
    judge = scripted("a", {}, otherwise="correct")

    for judges in ([], [judge], [judge, judge]):
        with pytest.raises(ValueError, match="two or more"):
            Cascade(Matcher(), judges)
