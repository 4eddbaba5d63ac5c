"""Reads a user's facts from a table; every mistake in it is one clear error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.fact_tables import Fields, Row, check_answer, read_rows, take_text, take_texts
from data.facts import Fact, FactsError, check_facts, fold_question
from data.rewordings import reword_for_test, reword_for_training, reword_for_validation

_FIELDS = Fields(
    required=("question", "answer"),
    lists=("aliases", "novel", "paraphrases"),
    more=(
        "statement",
        "reverse_question",
        "reverse_answer",
        "two_hop_question",
        "two_hop_answer",
    ),
)


def load_facts(path: Path) -> tuple[Fact, ...]:
    """Return the facts of a file in their order.

    `novel` wordings alternate between validation and test; with only one, none is for test.
    A fact without any gets built-in rewordings and is marked `templated`. A fact without
    `paraphrases` gets built-in ones for training. Surrounding white space is dropped, an empty
    value counts as absent. A reverse and a two-hop question each need their own answer, because
    what they ask for is not the fact's answer.

    Raises:
        FactsError: With file, place, field, value and what to do.
    """
    try:
        facts = tuple(_make_fact(row) for row in read_rows(path, _FIELDS))
        check_facts(facts)
        _check_wordings(facts)
    except FactsError as error:
        raise FactsError(f"{path}: {error}") from error
    return facts


def _make_fact(row: Row) -> Fact:
    try:
        question = take_text(row, "question") or ""
        novel = take_texts(row, "novel")
        return Fact(
            question=question,
            answer=check_answer(take_text(row, "answer") or ""),
            aliases=take_texts(row, "aliases"),
            statement=take_text(row, "statement"),
            paraphrases=take_texts(row, "paraphrases") or reword_for_training(question),
            novel_validation=novel[0::2] or reword_for_validation(question),
            novel_test=novel[1::2] if novel else reword_for_test(question),
            templated=not novel,
            **_take_pair(row, "reverse_question", "reverse_answer"),
            **_take_pair(row, "two_hop_question", "two_hop_answer"),
        )
    except FactsError as error:
        raise FactsError(f"{row.place}: {error}") from error


def _take_pair(row: Row, question_field: str, answer_field: str) -> dict[str, str | None]:
    question, answer = take_text(row, question_field), take_text(row, answer_field)
    if (question is None) != (answer is None):
        given, missing = (
            (question_field, answer_field) if answer is None else (answer_field, question_field)
        )
        raise FactsError(
            f"{missing}: it is missing though {given} is {question or answer!r}; give both or none"
        )
    return {question_field: question, answer_field: answer}


def _check_wordings(facts: Sequence[Fact]) -> None:
    """Refuse a wording that stands twice: it would be trained and tested, or counted twice."""
    seen: dict[str, str] = {}
    for position, fact in enumerate(facts, start=1):
        wordings = [
            ("question", (fact.question,)),
            ("paraphrases", fact.paraphrases),
            ("novel", (*fact.novel_validation, *fact.novel_test)),
        ]
        for field, texts in wordings:
            for text in texts:
                key = fold_question(text)
                place = f"fact {position}, {field}"
                if key in seen:
                    raise FactsError(
                        f"{place}: {text!r} is already used ({seen[key]}), and a tested "
                        "wording must not be a trained one or count twice; reword or remove it"
                    )
                seen[key] = place
