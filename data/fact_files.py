"""Reads a user's facts from a CSV, JSONL or TOML file; every mistake in it is one clear error.

CSV: a header and one fact per row, several values in a cell split by "|". JSONL: one object per
line. TOML: one [[fact]] table per fact. In the last two, several values are a list of texts.
"""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.facts import Fact, FactsError, check_facts
from data.nearest_name import hint_at
from data.prompts import cut_answer
from data.rewordings import reword_for_test, reword_for_training, reword_for_validation

_REQUIRED_FIELDS = ("question", "answer")
_LIST_FIELDS = ("aliases", "novel", "paraphrases")
_FIELDS = (
    *_REQUIRED_FIELDS,
    *_LIST_FIELDS,
    "statement",
    "reverse_question",
    "reverse_answer",
    "two_hop_question",
    "two_hop_answer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One fact as it stands in the file; `place` is its line, in TOML its number."""

    place: str
    values: Mapping[str, object]


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
        facts = tuple(_make_fact(row) for row in _read_rows(path))
        check_facts(facts)
        _check_wordings(facts)
    except FactsError as error:
        raise FactsError(f"{path}: {error}") from error
    return facts


def _read_rows(path: Path) -> list[_Row]:
    readers: dict[str, Callable[[str], Iterator[_Row]]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".toml": _read_toml,
    }
    content = _read_bytes(path)
    read = readers.get(path.suffix.lower())
    if read is None:
        raise FactsError(
            f"the ending {path.suffix!r} is not known; save the facts as {', '.join(readers)}"
        )
    text = _decode(content)
    if not text.strip():
        raise FactsError("the file is empty; at least one question with its answer is needed")
    rows = list(read(text))
    if not rows:
        raise FactsError("the file holds no fact; add at least one question with its answer")
    return rows


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FactsError("there is no such file; check the path") from error
    except IsADirectoryError as error:
        raise FactsError("this is a folder; name the file in it that holds the facts") from error
    except OSError as error:
        raise FactsError(
            f"it cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise FactsError(
            f"it is not UTF-8 text: byte {content[error.start]:#04x} at position {error.start} "
            "(the first byte is 0) does not belong there; save the file "
            'with the encoding UTF-8 (in Excel: "CSV UTF-8")'
        ) from error


def _read_csv(text: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        # A quoted value may span lines: a record begins after the last line of the one before it.
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise FactsError(
                f"{place}: this is not CSV ({error}); put values that hold commas or quotes into "
                'double quotes, and write a quote inside them as ""'
            ) from error
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            _check_header(place, header)
            continue
        if len(cells) != len(header):
            raise FactsError(
                f"{place}: the header has {len(header)} columns but this row {len(cells)}; put "
                "values that hold commas into double quotes, and leave no column out"
            )
        yield _Row(
            place=place,
            values={
                name: cell.split("|") if name in _LIST_FIELDS else cell
                for name, cell in zip(header, cells, strict=True)
            },
        )


def _check_header(place: str, header: Sequence[str]) -> None:
    _refuse_unknown(place, "column", header, _FIELDS)
    for name in header:
        if header.count(name) > 1:
            raise FactsError(f"{place}: the column {name!r} is there twice; remove one of them")
    for name in _REQUIRED_FIELDS:
        if name not in header:
            raise FactsError(
                f"{place}: the column {name!r} is missing, there is only {', '.join(header)}; "
                "the first line names the columns, separated by commas"
            )


def _read_jsonl(text: str) -> Iterator[_Row]:
    # Not splitlines(): it also breaks lines at characters that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            value = json.loads(line)
            # JSON can escape half of a surrogate pair, which no file or database can store.
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            # A JSON error counts lines inside its own text, where every line is the first.
            reason = (
                f"{error.msg} at column {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else error
            )
            raise FactsError(
                f"{place}: this is not JSON ({reason}); write one object per line, such as "
                '{"question": "…", "answer": "…"}'
            ) from error
        if not isinstance(value, dict):
            raise FactsError(
                f"{place}: {value!r} is not an object; write one per line, such as "
                '{"question": "…", "answer": "…"}'
            )
        _refuse_unknown(place, "key", value, _FIELDS)
        yield _Row(place=place, values=value)


def _read_toml(text: str) -> Iterator[_Row]:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FactsError(
            f"this is not TOML ({error}); write a [[fact]] table for each fact"
        ) from error
    _refuse_unknown("top level", "key", document, ("fact",))
    tables = document.get("fact", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise FactsError("fact: it is not a list of tables; begin each fact with [[fact]]")
    for number, table in enumerate(tables, start=1):
        place = f"fact {number}"
        _refuse_unknown(place, "key", table, _FIELDS)
        yield _Row(place=place, values=table)


def _refuse_unknown(place: str, what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            remedy = hint_at(name.lower(), known, otherwise=f"known are {', '.join(known)}")
            raise FactsError(f"{place}: the {what} {name!r} is not known; {remedy}")


def _make_fact(row: _Row) -> Fact:
    try:
        question = _take_text(row, "question") or ""
        novel = _take_texts(row, "novel")
        return Fact(
            question=question,
            answer=_take_answer(row),
            aliases=_take_texts(row, "aliases"),
            statement=_take_text(row, "statement"),
            paraphrases=_take_texts(row, "paraphrases") or reword_for_training(question),
            novel_validation=novel[0::2] or reword_for_validation(question),
            novel_test=novel[1::2] if novel else reword_for_test(question),
            templated=not novel,
            **_take_pair(row, "reverse_question", "reverse_answer"),
            **_take_pair(row, "two_hop_question", "two_hop_answer"),
        )
    except FactsError as error:
        raise FactsError(f"{row.place}: {error}") from error


def _take_text(row: _Row, field: str) -> str | None:
    value = row.values.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise FactsError(f"{field}: {value!r} is not a text; put it into quotes")
    return value.strip() or None


def _take_texts(row: _Row, field: str) -> tuple[str, ...]:
    values = row.values.get(field)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise FactsError(f'{field}: {values!r} is not a list of texts; write ["…", "…"]')
    return tuple(value.strip() for value in values if value.strip())


def _take_answer(row: _Row) -> str:
    answer = _take_text(row, "answer") or ""
    if cut_answer(answer) != answer:
        raise FactsError(
            f"answer: {answer!r} could never be given, because a model's answer ends at an empty "
            "line and at the next speaker or question; write it on one line"
        )
    return answer


def _take_pair(row: _Row, question_field: str, answer_field: str) -> dict[str, str | None]:
    question, answer = _take_text(row, question_field), _take_text(row, answer_field)
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
                key = " ".join(text.casefold().split())
                place = f"fact {position}, {field}"
                if key in seen:
                    raise FactsError(
                        f"{place}: {text!r} is already used ({seen[key]}), and a tested "
                        "wording must not be a trained one or count twice; reword or remove it"
                    )
                seen[key] = place
