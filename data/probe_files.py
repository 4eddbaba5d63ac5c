"""Reads a user's own probes and facts to rehearse from tables with a question and an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from data.fact_tables import Fields, Row, check_answer, read_rows, take_text, take_texts
from data.facts import FactsError, fold_question
from data.nearest_name import hint_at
from data.probes import RINGS, KnownFact, Probe, Ring

DEFAULT_RING: Ring = "general"

_FIELDS = Fields(required=("question", "answer"), lists=("answer",), more=("ring", "statement"))

_Asked = TypeVar("_Asked", Probe, KnownFact)


def load_probe_file(path: Path) -> tuple[Probe, ...]:
    """Return the probes of a file in their order.

    `answer` may be several accepted ones: the first is what is shown as right. A probe without a
    ring belongs to `general`. Surrounding white space is dropped, an empty value counts as absent.

    Raises:
        FactsError: With file, place, field, value and what to do.
    """
    return _load(path, _make_probe)


def load_rehearsal_file(path: Path) -> tuple[KnownFact, ...]:
    """Return the facts of a file that training may rehearse, in their order.

    The columns are those of a file of probes. Of several answers the first is trained, and it is
    the one by which the base has to know the fact; the others are read and not used.

    Raises:
        FactsError: With file, place, field, value and what to do.
    """
    return _load(path, _make_known_fact)


def _load(path: Path, make: Callable[[Row], _Asked]) -> tuple[_Asked, ...]:
    try:
        rows = read_rows(path, _FIELDS)
        made = tuple(_make_in_place(row, make) for row in rows)
        _check_questions(rows, made)
    except FactsError as error:
        raise FactsError(f"{path}: {error}") from error
    return made


def _make_in_place(row: Row, make: Callable[[Row], _Asked]) -> _Asked:
    try:
        return make(row)
    except FactsError as error:
        raise FactsError(f"{row.place}: {error}") from error


def _make_probe(row: Row) -> Probe:
    answer, *aliases = _take_answers(row)
    return Probe(
        ring=_take_ring(row),
        question=_take_question(row),
        answer=answer,
        aliases=tuple(aliases),
        statement=take_text(row, "statement"),
    )


def _make_known_fact(row: Row) -> KnownFact:
    return KnownFact(
        ring=_take_ring(row),
        question=_take_question(row),
        answer=_take_answers(row)[0],
        statement=take_text(row, "statement"),
    )


def _take_question(row: Row) -> str:
    question = take_text(row, "question")
    if question is None:
        raise FactsError("question: it is empty; write what the model is asked")
    return question


def _take_answers(row: Row) -> tuple[str, ...]:
    value = row.values.get("answer")
    # JSONL and TOML may write one answer, or several, as CSV does.
    texts = value.split("|") if isinstance(value, str) else value
    answers = take_texts(Row(place=row.place, values={"answer": texts}), "answer")
    if not answers:
        raise FactsError('answer: it is empty; write what counts as right, several split by "|"')
    return tuple(map(check_answer, dict.fromkeys(answers)))


def _take_ring(row: Row) -> Ring:
    ring = take_text(row, "ring") or DEFAULT_RING
    if ring not in RINGS:
        remedy = hint_at(ring.lower(), RINGS, otherwise=f"the rings are {', '.join(RINGS)}")
        raise FactsError(f"ring: there is no ring {ring!r}; {remedy}")
    return ring


def _check_questions(rows: list[Row], made: Sequence[Probe | KnownFact]) -> None:
    first: dict[str, str] = {}
    for row, asked in zip(rows, made, strict=True):
        key = fold_question(asked.question)
        if key in first:
            raise FactsError(
                f"{row.place}: question: {asked.question!r} is asked already ({first[key]}); "
                'remove one of them, and split several accepted answers of the other by "|"'
            )
        first[key] = row.place
