"""The cache: what is asked again, what is kept, and under which key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from data.measurements import Answer, Verdict
from objectives.judges.base import Judge, JudgeError
from objectives.judges.cached import CachedJudge, MemoryCache, verdict_key
from objectives.judges.cascade import Cascade
from objectives.judges.matcher import Matcher

MakeAnswer = Callable[..., Answer]


def test_equal_answers_are_judged_once_in_a_batch_and_never_again(
    make_answer: MakeAnswer, scripted: Any
) -> None:
    inner = scripted("a", {"x": "correct"}, otherwise="incorrect")
    judge: Judge = CachedJudge(inner, MemoryCache())
    answers = [make_answer(text) for text in ("x", "y", "x")]

    first, again = judge.judge(answers), judge.judge(answers)

    assert inner.asked == ["x", "y"]
    assert [verdict.label for verdict in first] == ["correct", "incorrect", "correct"]
    assert first == again
    assert [verdict.answer for verdict in first] == answers
    assert {verdict.judge for verdict in first} == {judge.name} == {"a"}
    assert judge.judge([]) == ()


def test_what_is_unjudged_is_asked_again(make_answer: MakeAnswer, scripted: Any) -> None:
    inner = scripted("a", {}, otherwise="unjudged")
    judge = CachedJudge(inner, MemoryCache())

    assert judge.judge([make_answer("x")])[0].label == "unjudged"
    inner.otherwise = "correct"
    assert judge.judge([make_answer("x")])[0].label == "correct"
    assert judge.judge([make_answer("x")])[0].label == "correct"
    assert inner.asked == ["x", "x"]


def test_a_key_depends_on_question_accepted_texts_answer_and_judge(
    make_answer: MakeAnswer,
) -> None:
    keys = [
        verdict_key(make_answer("x"), "a"),
        verdict_key(make_answer("y"), "a"),
        verdict_key(make_answer("x"), "b"),
        verdict_key(make_answer("x", question="Who?"), "a"),
        verdict_key(make_answer("x", accepted=["a", "b"]), "a"),
        verdict_key(make_answer("x", accepted=["a, b"]), "a"),
        verdict_key(make_answer("\ud800"), "a"),
    ]

    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)
    assert keys[0] == verdict_key(make_answer("x"), "a")


def test_judges_share_a_cache_without_taking_each_others_verdicts(
    make_answer: MakeAnswer, scripted: Any
) -> None:
    cache = MemoryCache()
    one, other = (
        scripted(name, {}, otherwise=label)
        for name, label in (("a", "correct"), ("b", "incorrect"))
    )

    labels = [CachedJudge(j, cache).judge([make_answer("x")])[0].label for j in (one, other, one)]

    assert labels == ["correct", "incorrect", "correct"]
    assert one.asked == other.asked == ["x"]


def test_a_judge_that_fails_late_loses_little(make_answer: MakeAnswer, scripted: Any) -> None:
    inner = scripted("a", {}, otherwise="correct")

    class FailingJudge:
        name = "a"
        unreachable_reason = None

        def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
            if len(inner.asked) > 500:
                raise JudgeError("the key is refused")
            verdicts: tuple[Verdict, ...] = inner.judge(answers)
            return verdicts

    cache = MemoryCache()
    answers = [make_answer(f"x{number}") for number in range(1000)]
    with pytest.raises(JudgeError):
        CachedJudge(FailingJudge(), cache).judge(answers)
    known = len(inner.asked)

    CachedJudge(inner, cache).judge(answers)

    assert known >= 500
    assert len(inner.asked) == 1000


def test_a_full_memory_forgets_the_oldest() -> None:
    cache = MemoryCache(most=2)

    cache.write({"a": "correct", "b": "incorrect"})
    cache.write({"c": "correct"})

    assert cache.read(["a", "b", "c"]) == {"b": "incorrect", "c": "correct"}


def test_why_a_server_is_silent_shows_through_cache_and_cascade(scripted: Any) -> None:
    inner, other = (scripted(name, {}, otherwise="unjudged") for name in "ab")
    cascade = Cascade(Matcher(), [CachedJudge(j, MemoryCache()) for j in (inner, other)])

    assert cascade.unreachable_reason is None
    inner.unreachable_reason = "it is down"
    assert cascade.unreachable_reason == "it is down"
