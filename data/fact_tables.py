"""Reads a table of facts from a CSV, TSV, JSONL or TOML file; a mistake in it is one clear error.

CSV and TSV: a header and one fact per row, several values in a cell split by "|". JSONL: one
object per line. TOML: one [[fact]] table per fact. In the last two, several values are a list of
texts.
"""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.facts import FactsError
from data.nearest_name import hint_at
from data.prompts import cut_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What a row may hold; the fields of `lists` hold several values."""

    required: tuple[str, ...]
    lists: tuple[str, ...]
    more: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return all of them, as an error lists them."""
        return tuple(dict.fromkeys((*self.required, *self.lists, *self.more)))


# What a separator makes of a file, and what its signs are called.
_SEPARATORS = {",": ("CSV", "commas"), "\t": ("TSV", "tabs")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fact as it stands in the file; `place` is its line, in TOML its number."""

    place: str
    values: Mapping[str, object]


def read_rows(path: Path, fields: Fields) -> list[Row]:
    """Return the rows of a file in their order, at least one, with no field but those given.

    Raises:
        FactsError: With place, field, value and what to do, but not the file's name.
    """
    readers: dict[str, Callable[[str, Fields], Iterator[Row]]] = {
        ".csv": partial(_read_csv, delimiter=","),
        ".tsv": partial(_read_csv, delimiter="\t"),
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
    rows = list(read(text, fields))
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


def _read_csv(text: str, fields: Fields, *, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    kind, signs = _SEPARATORS[delimiter]
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
                f"{place}: this is not {kind} ({error}); put values that hold {signs} or quotes "
                'into double quotes, and write a quote inside them as ""'
            ) from error
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            _check_header(place, header, fields, signs)
            continue
        if len(cells) != len(header):
            raise FactsError(
                f"{place}: the header has {len(header)} columns but this row {len(cells)}; put "
                f"values that hold {signs} into double quotes, and leave no column out"
            )
        yield Row(
            place=place,
            values={
                name: cell.split("|") if name in fields.lists else cell
                for name, cell in zip(header, cells, strict=True)
            },
        )


def _check_header(place: str, header: Sequence[str], fields: Fields, signs: str) -> None:
    _refuse_unknown(place, "column", header, fields.names)
    for name in header:
        if header.count(name) > 1:
            raise FactsError(f"{place}: the column {name!r} is there twice; remove one of them")
    for name in fields.required:
        if name not in header:
            raise FactsError(
                f"{place}: the column {name!r} is missing, there is only {', '.join(header)}; "
                f"the first line names the columns, separated by {signs}"
            )


def _read_jsonl(text: str, fields: Fields) -> Iterator[Row]:
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
        _refuse_unknown(place, "key", value, fields.names)
        yield Row(place=place, values=value)


def _read_toml(text: str, fields: Fields) -> Iterator[Row]:
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
        _refuse_unknown(place, "key", table, fields.names)
        yield Row(place=place, values=table)


def _refuse_unknown(place: str, what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            remedy = hint_at(name.lower(), known, otherwise=f"known are {', '.join(known)}")
            raise FactsError(f"{place}: the {what} {name!r} is not known; {remedy}")


def take_text(row: Row, field: str) -> str | None:
    """Return a value without surrounding white space; None where it is absent or empty.

    Raises:
        FactsError: If it is not a text.
    """
    value = row.values.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise FactsError(f"{field}: {value!r} is not a text; put it into quotes")
    return value.strip() or None


def take_texts(row: Row, field: str) -> tuple[str, ...]:
    """Return several values without surrounding white space and empty ones; () where absent.

    Raises:
        FactsError: If they are not a list of texts.
    """
    values = row.values.get(field)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise FactsError(f'{field}: {values!r} is not a list of texts; write ["…", "…"]')
    return tuple(value.strip() for value in values if value.strip())


def check_answer(answer: str) -> str:
    """Return an answer that a model could give.

    Raises:
        FactsError: If what a model says would be cut before its end.
    """
    if cut_answer(answer) != answer:
        raise FactsError(
            f"answer: {answer!r} could never be given, because a model's answer ends at an empty "
            "line and at the next speaker or question; write it on one line"
        )
    return answer
