"""Reads answers that people have labelled from a table, to measure a judge by them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data.fact_tables import Fields, Row, read_rows, take_text, take_texts
from data.facts import FactsError, text_digest
from data.measurements import Answer, Label
from data.nearest_name import hint_at
from data.prompts import Prompt
from data.spreadsheet_cells import unguard_cell

COLUMNS = ("question", "expected", "answer", "verdict")

_FIELDS = Fields(required=COLUMNS, lists=("expected",), more=())
_LABELS: dict[str, Label] = {
    **dict.fromkeys(("correct", "right", "true", "yes", "1"), "correct"),
    **dict.fromkeys(("incorrect", "wrong", "false", "no", "0"), "incorrect"),
    "not_attempted": "not_attempted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledAnswer:
    """A model's answer to a question, and the label that people gave it, never "unjudged".

    `accepted` are the texts that count as right; `text` may be empty, for a model may say nothing.
    """

    question: str
    accepted: tuple[str, ...]
    text: str
    label: Label

    @property
    def answer(self) -> Answer:
        """Return the answer as a judge takes it; how the model was asked is not known."""
        return Answer(
            prompt=Prompt(
                text=self.question,
                style="plain",
                phrasing="test",
                subject=text_digest(self.question),
                question=self.question,
                accepted=self.accepted,
            ),
            text=self.text,
            tokens=0,
        )


def load_labels(path: Path) -> tuple[LabelledAnswer, ...]:
    """Return the labelled answers of a CSV, TSV, JSONL or TOML file in its order.

    Its columns are question, expected, answer and verdict. Several `expected` answers are split by
    "|", in JSONL and TOML they may be a list. A `verdict` is correct, right, true, yes or 1;
    incorrect, wrong, false, no or 0; or not_attempted. Surrounding white space is dropped. A cell
    of a CSV or TSV file that begins with an apostrophe and what a formula begins with is read
    without the apostrophe: spreadsheets and `write_sheet` put it there.

    Raises:
        FactsError: With file, row, field, value and what to do; rows without a verdict are
            counted in one.
    """
    try:
        rows = read_rows(path, _FIELDS)
        if path.suffix.lower() in (".csv", ".tsv"):
            rows = list(map(_without_guards, rows))
        read = list(map(_make_labelled, rows))
        labelled = tuple(each for each in read if each is not None)
        if len(labelled) < len(rows):
            first = next(row for row, each in zip(rows, read, strict=True) if each is None)
            raise FactsError(
                f"verdict: {len(rows) - len(labelled)} of {len(rows)} rows have none, the first "
                f"at {first.place}; write correct, incorrect or not_attempted in each of them, or "
                "delete them"
            )
        return labelled
    except FactsError as error:
        raise FactsError(f"{path}: {error}") from error


def labels_digest(labels: Sequence[LabelledAnswer]) -> str:
    """Return 64 hexadecimal digits that any change of the labelled answers changes."""
    content = json.dumps([asdict(each) for each in labels], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _without_guards(row: Row) -> Row:
    """Return a row of a table as it was before its cells were guarded against being computed."""
    values = dict(row.values)
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = unguard_cell(value)
        elif isinstance(value, list):  # which was one cell
            values[name] = [*map(unguard_cell, value[:1]), *value[1:]]
    return replace(row, values=values)


def _make_labelled(row: Row) -> LabelledAnswer | None:
    """Return a labelled answer, None where all but the verdict is there."""
    try:
        # An answer may be empty, but its key may not be missing; a table's header sees to that.
        for field in _FIELDS.required:
            if field not in row.values:
                raise FactsError(f"{field}: it is missing; every answer needs one")
        question = take_text(row, "question")
        if question is None:
            raise FactsError("question: it is empty; write what the model was asked")
        accepted, text = _take_expected(row), take_text(row, "answer") or ""
        verdict = row.values["verdict"]
        if verdict is None or (isinstance(verdict, str) and not verdict.strip()):
            return None
        return LabelledAnswer(
            question=question, accepted=accepted, text=text, label=_take_label(verdict)
        )
    except FactsError as error:
        raise FactsError(f"{row.place}: {error}") from error


def _take_expected(row: Row) -> tuple[str, ...]:
    value = row.values["expected"]
    if isinstance(value, str):  # in JSONL and TOML, as it would stand in a cell
        accepted = tuple(part.strip() for part in value.split("|") if part.strip())
    else:
        accepted = take_texts(row, "expected")
    if not accepted:
        raise FactsError(
            "expected: it is empty; write at least one answer that is right, several with "
            '"|" between them'
        )
    return accepted


def _take_label(value: object) -> Label:
    # JSON's own true, false, 1 and 0 are meant as the words are.
    word = str(value).strip().casefold().replace(" ", "_").replace("-", "_")
    label = _LABELS.get(word)
    if label is None or isinstance(value, float):
        remedy = hint_at(
            word,
            [known for known in _LABELS if len(known) > 1],
            otherwise="write correct, incorrect or not_attempted",
        )
        raise FactsError(f"verdict: {value!r} is not allowed; {remedy}")
    return label
