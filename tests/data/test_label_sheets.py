"""A sheet has a fair choice of answers, tells no verdict, and is read back as it was written."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.facts import FactsError
from data.label_files import load_labels
from data.label_sheets import SheetRow, choose_rows, write_sheet
from data.measurements import Answer, Label, Verdict
from data.prompts import Phrasing, Prompt
from data.spreadsheet_cells import guard_cell, unguard_cell


def make_verdict(
    text: str, label: Label, *, question: str = "Who won?", phrasing: Phrasing = "validation"
) -> Verdict:
    prompt = Prompt(
        text=f"Question: {question}\nAnswer:",
        style="qna",
        phrasing=phrasing,
        subject="fact",
        question=question,
        accepted=("Ada Quill", "A. Quill"),
    )
    return Verdict(answer=Answer(prompt=prompt, text=text, tokens=3), label=label, judge="any")


def make_verdicts(name: str, label: Label, count: int) -> list[Verdict]:
    return [make_verdict(f"{name} {number:03}", label) for number in range(count)]


VERDICTS = make_verdicts("right", "correct", 60) + make_verdicts("wrong", "incorrect", 240)


def test_every_answer_is_as_likely_as_any_other() -> None:
    drawn = Counter(
        row.text for seed in range(400) for row in choose_rows(VERDICTS, count=60, seed=seed)
    )
    assert len(drawn) == 300
    # Each is drawn 80 times on the average, with a standard deviation of 8.
    assert all(80 - 40 < times < 80 + 40 for times in drawn.values())
    right = sum(times for text, times in drawn.items() if text.startswith("right"))
    assert right / drawn.total() == pytest.approx(60 / 300, abs=0.01)


def test_there_are_no_more_than_there_are() -> None:
    assert len(choose_rows(VERDICTS[:7], count=100, seed=0)) == 7
    assert len(choose_rows(VERDICTS, count=1, seed=0)) == 1
    assert choose_rows([], count=100, seed=0) == ()


def test_the_seed_alone_decides() -> None:
    rows = choose_rows(VERDICTS, count=100, seed=7)
    assert choose_rows(VERDICTS[::-1], count=100, seed=7) == rows
    other = choose_rows(VERDICTS, count=100, seed=8)
    assert other != rows
    assert set(other) != set(rows)


def test_an_answer_comes_once_whoever_gave_it_however_it_was_asked() -> None:
    twice = [make_verdict("Ada ", "correct"), make_verdict("Ada", "correct", phrasing="test")]
    elsewhere = [make_verdict("Ada", "correct"), make_verdict("Ada", "correct", question="Who?")]
    rows = choose_rows(twice + elsewhere, count=10, seed=0)
    assert sorted(rows) == [
        SheetRow(question="Who won?", accepted=("Ada Quill", "A. Quill"), text="Ada"),
        SheetRow(question="Who?", accepted=("Ada Quill", "A. Quill"), text="Ada"),
    ]


def test_probes_and_what_was_not_judged_are_left_out() -> None:
    verdicts = [
        make_verdict("Paris", "correct", phrasing="probe"),
        make_verdict("perhaps Ada", "unjudged"),
        make_verdict("", "not_attempted"),
    ]
    assert [row.text for row in choose_rows(verdicts, count=10, seed=0)] == [""]


_TEXTS = st.text(
    st.sampled_from("=+-@'\"|,;\t\n\r \u2028\uff1da1")
    | st.characters(codec="utf-8", exclude_characters="\0"),
    max_size=12,
).map(str.strip)
_ROWS = st.builds(
    SheetRow,
    question=_TEXTS.filter(bool),
    accepted=st.lists(
        _TEXTS.map(lambda text: text.replace("|", "/")).filter(bool), min_size=1, max_size=3
    ).map(tuple),
    text=_TEXTS,
)


@given(st.lists(_ROWS, min_size=1, max_size=4), st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_any_sheet_is_read_back_once_it_is_filled_in(
    tmp_path_factory: pytest.TempPathFactory, rows: list[SheetRow], ending: str
) -> None:
    text = write_sheet(rows, ending)
    path = tmp_path_factory.mktemp("sheet") / f"sheet{ending}"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(FactsError, match=f"{len(rows)} of {len(rows)} rows have none"):
        load_labels(path)
    path.write_text(fill_in(text, ending), encoding="utf-8", newline="")
    read = load_labels(path)
    assert [(each.question, each.accepted, each.text, each.label) for each in read] == [
        (row.question, row.accepted, row.text, "correct") for row in rows
    ]


def fill_in(text: str, ending: str) -> str:
    """Return a sheet with a verdict in every row, as an editor or a spreadsheet saves it."""
    if ending == ".jsonl":
        lines = [json.loads(line) | {"verdict": "yes"} for line in text.split("\n") if line]
        return "\n".join(json.dumps(line) for line in lines)
    delimiter = "," if ending == ".csv" else "\t"
    header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    written = io.StringIO(newline="")
    saved = csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    saved.writerows([header, *([*row[:3], "yes"] for row in rows)])
    return written.getvalue()


def test_a_sheet_has_a_header_and_no_verdict() -> None:
    row = SheetRow(question="Who won?", accepted=("Ada", "A."), text="It was,\nAda")
    assert write_sheet([row], ".csv") == (
        'question,expected,answer,verdict\r\nWho won?,Ada|A.,"It was,\nAda",\r\n'
    )
    assert write_sheet([row], ".tsv") == (
        'question\texpected\tanswer\tverdict\r\nWho won?\tAda|A.\t"It was,\nAda"\t\r\n'
    )
    assert write_sheet([row], ".jsonl") == (
        '{"question": "Who won?", "expected": ["Ada", "A."], "answer": "It was,\\nAda", '
        '"verdict": ""}\n'
    )


@given(_ROWS, st.sampled_from([",", "\t"]))
def test_no_cell_of_a_table_begins_like_a_formula(row: SheetRow, delimiter: str) -> None:
    text = write_sheet([row], ".csv" if delimiter == "," else ".tsv")
    for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
        assert not any(cell.startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")) for cell in cells)


@given(_TEXTS)
def test_a_guard_is_taken_back(text: str) -> None:
    assert unguard_cell(guard_cell(text)) == text


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("'=1", "''=1"),
        ("-5", "'-5"),
        ("'twas", "'twas"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_only_what_could_be_a_formula_is_guarded(text: str, cell: str) -> None:
    assert guard_cell(text) == cell


@pytest.mark.parametrize(
    ("ending", "accepted", "said"),
    [
        (".toml", "Ada", "the ending '.toml' is not known; save the sheet as .csv, .tsv, .jsonl"),
        ("", "Ada", "the ending '' is not known"),
        (".csv", "A|B", "expected: 'A|B' cannot stand in a table"),
    ],
)
def test_what_cannot_be_written_is_explained(ending: str, accepted: str, said: str) -> None:
    row = SheetRow(question="Q?", accepted=(accepted,), text="A")
    with pytest.raises(FactsError) as caught:
        write_sheet([row], ending)
    assert said in str(caught.value)
    assert "A|B" in write_sheet([SheetRow(question="Q?", accepted=("A|B",), text="")], ".jsonl")
