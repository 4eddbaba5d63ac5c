"""What a fact is, and what a set of facts must hold before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


class FactsError(ValueError):
    """A facts table cannot be used; the message names the field, the value and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing to teach.

    `question` is the trained wording, `paraphrases` are further wordings that training may use.
    `novel_validation` and `novel_test` are wordings that no training text ever contains; the study
    searches on the first and confirms on the second. `templated` says that the novel wordings were
    made by rule from `question` because the author gave none.
    """

    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    statement: str | None = None
    paraphrases: tuple[str, ...] = ()
    novel_validation: tuple[str, ...] = ()
    novel_test: tuple[str, ...] = ()
    templated: bool = False
    reverse_question: str | None = None
    reverse_answer: str | None = None
    two_hop_question: str | None = None
    two_hop_answer: str | None = None

    def __post_init__(self) -> None:
        for field in ("question", "answer"):
            if not getattr(self, field).strip():
                raise FactsError(f"{field}: it is empty; every fact needs one")

    @property
    def id(self) -> str:
        """Return a short digest of the question: the same in every run and on every machine."""
        return text_digest(self.question)

    @property
    def accepted_answers(self) -> tuple[str, ...]:
        """Return the answer and then its aliases, the texts that count as right."""
        return (self.answer, *self.aliases)


def text_digest(text: str) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fold_question(question: str) -> str:
    """Return what two questions share that differ in case and white space alone."""
    return " ".join(question.casefold().split())


def check_facts(facts: Sequence[Fact]) -> None:
    """Refuse an empty table, a question asked twice, and a question with two answers.

    Raises:
        FactsError: With the two positions (counted from 1) that clash.
    """
    if not facts:
        raise FactsError("facts: the table is empty; give at least one question with its answer")
    first: dict[str, tuple[int, Fact]] = {}
    for position, fact in enumerate(facts, start=1):
        key = fold_question(fact.question)
        if key not in first:
            first[key] = (position, fact)
            continue
        earlier, other = first[key]
        if other.answer == fact.answer:
            raise FactsError(
                f"question: facts {earlier} and {position} are duplicates ({fact.question!r}); "
                "remove one of them"
            )
        raise FactsError(
            f"answer: facts {earlier} and {position} contradict each other: {fact.question!r} is "
            f"answered {other.answer!r} and {fact.answer!r}; keep one, or make the other an alias"
        )
