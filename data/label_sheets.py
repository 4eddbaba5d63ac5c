"""Chooses answers for people to label, and writes them as a sheet that is read with its labels."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.facts import FactsError
from data.label_files import COLUMNS
from data.measurements import Verdict
from data.spreadsheet_cells import guard_cell

# The verdicts of a sheet, for people to replace.
_NO_VERDICT = ""
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SHEET_ENDINGS = (*_DELIMITERS, ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SheetRow:
    """An answer that people have not labelled; `accepted` are the texts that count as right."""

    question: str
    accepted: tuple[str, ...]
    text: str


def choose_rows(verdicts: Iterable[Verdict], *, count: int, seed: int) -> tuple[SheetRow, ...]:
    """Return different answers to questions about new facts, drawn alike and in no order.

    Every answer is as likely as any other, whatever the judge made of it: only so are a judge's
    sensitivity and specificity over them those over the study. Answers to probes and those that
    the judge left unjudged are in none.

    Args:
        verdicts: All of the study's trials.
        count: The most answers.
        seed: Fixes the choice and the order; the order of the verdicts has no part in it.
    """
    rows = {
        SheetRow(
            question=verdict.answer.prompt.question.strip(),
            accepted=tuple(text.strip() for text in verdict.answer.prompt.accepted),
            text=verdict.answer.text.strip(),
        )
        for verdict in verdicts
        if verdict.answer.prompt.phrasing != "probe" and verdict.label != "unjudged"
    }
    return tuple(random.Random(seed).sample(sorted(rows), min(count, len(rows))))


def write_sheet(rows: Sequence[SheetRow], ending: str) -> str:
    """Return the text of a sheet with question, expected, answer and an empty verdict.

    In CSV and TSV a cell that a spreadsheet would compute begins with an apostrophe, for what a
    model said is not to be trusted; `load_labels` reads it without.

    Args:
        rows: At least one.
        ending: What the file's name ends with: .csv, .tsv or .jsonl.

    Raises:
        FactsError: If the ending is another, or CSV or TSV cannot hold an expected answer.
    """
    if ending == ".jsonl":
        return "".join(
            json.dumps(dict(zip(COLUMNS, _cells(row), strict=True)), ensure_ascii=False) + "\n"
            for row in rows
        )
    if ending not in _DELIMITERS:
        raise FactsError(
            f"the ending {ending!r} is not known; save the sheet as {', '.join(SHEET_ENDINGS)}"
        )
    written = io.StringIO(newline="")
    table = csv.writer(written, delimiter=_DELIMITERS[ending])
    table.writerow(COLUMNS)
    for row in rows:
        question, accepted, text, verdict = _cells(row)
        for each in accepted:
            if "|" in each:
                raise FactsError(
                    f'expected: {each!r} cannot stand in a table, where "|" separates answers; '
                    "save the sheet as .jsonl"
                )
        table.writerow([*map(guard_cell, (question, "|".join(accepted), text)), verdict])
    return written.getvalue()


def _cells(row: SheetRow) -> tuple[str, tuple[str, ...], str, str]:
    return row.question, row.accepted, row.text, _NO_VERDICT
