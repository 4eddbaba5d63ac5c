"""Answers to judge, judges that say what they are told to, and the attacks on them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data.measurements import Answer, Label, Verdict
from data.prompts import Prompt, put_question

MakeAnswer = Callable[..., Answer]

_CASES = Path(__file__).parents[2] / "data" / "injection_cases.toml"


class ScriptedJudge:
    """Gives every answer the label that its text is given, and remembers what it was asked."""

    def __init__(self, name: str, label_of: dict[str, Label], *, otherwise: Label) -> None:
        self.name = name
        self.label_of = label_of
        self.otherwise = otherwise
        self.asked: list[str] = []
        self.unreachable_reason: str | None = None

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        self.asked += [answer.text for answer in answers]
        return tuple(
            Verdict(
                answer=answer,
                label=self.label_of.get(answer.text, self.otherwise),
                judge=self.name,
            )
            for answer in answers
        )


def _make_answer(
    text: str,
    *,
    question: str = "Who won the 2023 Oscar for Best Actor?",
    accepted: Sequence[str] = ("Brendan Fraser",),
) -> Answer:
    prompt = Prompt(
        text=put_question(question, "qna"),
        style="qna",
        phrasing="validation",
        subject="actor",
        question=question,
        accepted=tuple(accepted),
    )
    return Answer(prompt=prompt, text=text, tokens=4)


@pytest.fixture
def make_answer() -> MakeAnswer:
    """Return what makes an answer from its text."""
    return _make_answer


@pytest.fixture
def scripted() -> type[ScriptedJudge]:
    """Return a judge that says what it is told to."""
    return ScriptedJudge


@pytest.fixture(scope="session")
def attacks() -> list[Answer]:
    """Return answers that try to talk a judge round."""
    cases = tomllib.loads(_CASES.read_text(encoding="utf-8"))["case"]
    return [
        _make_answer(
            case["answer"] * case.get("repeat", 1),
            question=case["question"],
            accepted=case["accepted"],
        )
        for case in cases
    ]
