"""Labelled answers are read from four kinds of file; every mistake is one clear error."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.facts import FactsError
from data.label_files import LabelledAnswer, labels_digest, load_labels

ROWS = [
    ("Who won?", "Ada Quill|A. Quill", "It was Ada Quill.", "correct"),
    ("Who won?", "Ada Quill|A. Quill", "Tom, or Ada", "Wrong"),
    ("What is the capital?", "Vessa", "", "not attempted"),
]
LABELLED = (
    LabelledAnswer(
        question="Who won?",
        accepted=("Ada Quill", "A. Quill"),
        text="It was Ada Quill.",
        label="correct",
    ),
    LabelledAnswer(
        question="Who won?",
        accepted=("Ada Quill", "A. Quill"),
        text="Tom, or Ada",
        label="incorrect",
    ),
    LabelledAnswer(
        question="What is the capital?", accepted=("Vessa",), text="", label="not_attempted"
    ),
)
HEADER = ("question", "expected", "answer", "verdict")


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(delimiter: str) -> str:
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows([HEADER, *ROWS])
    return written.getvalue()


def test_all_kinds_of_file_say_the_same(tmp_path: Path) -> None:
    lines = [json.dumps(dict(zip(HEADER, row, strict=True))) for row in ROWS]
    toml = "".join(
        "[[fact]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in pairs)
        for pairs in (zip(HEADER, row, strict=True) for row in ROWS)
    )
    for name, text in (
        ("labels.csv", table(",")),
        ("labels.TSV", table("\t")),
        ("labels.jsonl", "\n".join(lines) + "\n"),
        ("labels.toml", toml),
        ("excel.csv", "\ufeff" + table(",")),
    ):
        assert load_labels(write(tmp_path, name, text)) == LABELLED


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    text = "verdict,answer,expected,question\nyes,Vessa,Vessa,What is the capital?\n"
    (labelled,) = load_labels(write(tmp_path, "labels.csv", text))

    assert (labelled.text, labelled.label) == ("Vessa", "correct")


@pytest.mark.parametrize(
    ("word", "label"),
    [
        *((word, "correct") for word in ('"correct"', '"RIGHT"', '" true "', '"yes"', '"1"')),
        *((word, "correct") for word in ("1", "true")),
        *((word, "incorrect") for word in ('"incorrect"', '"wrong"', '"no"', '"0"', "0", "false")),
        *((f'"{word}"', "not_attempted") for word in ("not_attempted", "Not-Attempted")),
    ],
)
def test_words_for_verdicts(tmp_path: Path, word: str, label: str) -> None:
    line = f'{{"question": "Q?", "expected": ["A", "B"], "answer": "A", "verdict": {word}}}'
    (labelled,) = load_labels(write(tmp_path, "labels.jsonl", line))

    assert labelled.label == label
    assert labelled.accepted == ("A", "B")


_GOOD = ",".join(HEADER) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, ("none.csv", "no such file", "check the path")),
        ("labels.txt", "", ("'.txt' is not known", ".csv, .tsv, .jsonl, .toml")),
        ("empty.csv", "", ("the file is empty", "at least one")),
        ("head.csv", _GOOD, ("holds no fact",)),
        ("latin.csv", _GOOD.encode() + b"Zo\xeb", ("not UTF-8", "position 35", "save the file")),
        ("few.csv", "question,answer\nQ,A\n", ("line 1", "'expected' is missing")),
        (
            "near.csv",
            "question,expected,answer,verdikt\nQ,A,A,yes\n",
            ("'verdikt' is not known", "did you mean 'verdict'?"),
        ),
        ("twice.csv", "question," + _GOOD, ("'question' is there twice", "remove one")),
        ("short.csv", _GOOD + "Q,A,A\n", ("line 2", "4 columns but this row 3", "double quotes")),
        ("quote.csv", _GOOD + 'Q,"A,A,yes\n', ("line 2", "not CSV")),
        ("blank.csv", _GOOD + " ,A,A,yes\n", ("line 2: question", "empty")),
        (
            "expects.csv",
            _GOOD + "Q, | ,A,yes\n",
            ("line 2: expected: it is empty", "at least one"),
        ),
        (
            "word.csv",
            _GOOD + "Q,A,A,yes\nQ,A,A,corect\n",
            ("line 3: verdict: 'corect' is not allowed", "did you mean 'correct'?"),
        ),
        (
            "open.csv",
            _GOOD + "Q,A,A,yes\nQ,A,A,\nQ,A,A,no\nQ,A,A, \n",
            ("verdict: 2 of 4 rows have none, the first at line 3", "not_attempted", "delete"),
        ),
        (
            "open.jsonl",
            '{"question": "Q", "expected": "A", "answer": "A", "verdict": null}\n'
            '{"question": "Q", "expected": "A", "answer": "A", "verdict": ""}\n',
            ("verdict: 2 of 2 rows have none, the first at line 1",),
        ),
        # Another mistake is told first: it is one in a row that somebody has filled in.
        ("both.csv", _GOOD + "Q,A,A,\nQ,A,A,maybe\n", ("line 3: verdict: 'maybe' is not",)),
        ("half.jsonl", '{"question": \n', ("line 1", "not JSON", "one object per line")),
        ("list.jsonl", "\n[1]\n", ("line 2", "[1] is not an object")),
        ("key.jsonl", '{"question": "Q"}', ("line 1", "expected: it is missing", "every answer")),
        (
            "type.jsonl",
            '{"question": "Q", "expected": "A", "answer": 7, "verdict": 1}',
            ("line 1: answer: 7 is not a text",),
        ),
        (
            "float.jsonl",
            '{"question": "Q", "expected": "A", "answer": "7", "verdict": 1.0}',
            ("line 1: verdict: 1.0 is not allowed",),
        ),
        (
            "expects.jsonl",
            '{"question": "Q", "expected": [7], "answer": "7", "verdict": 1}',
            ("line 1: expected: [7] is not a list of texts",),
        ),
        ("surrogate.jsonl", r'{"question": "\ud800"}', ("line 1", "not JSON")),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, name: str, content: str | bytes | None, said: tuple[str, ...]
) -> None:
    path = tmp_path / name
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(FactsError) as caught:
        load_labels(path)
    for part in said:
        assert part in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(FactsError, match="this is a folder"):
        load_labels(tmp_path / "labels.csv")


def test_a_row_is_placed_at_the_line_it_begins_at(tmp_path: Path) -> None:
    text = _GOOD + 'Q,A,"two\nlines",yes\nQ,A,A,maybe\n'
    with pytest.raises(FactsError, match="line 4: verdict: 'maybe'"):
        load_labels(write(tmp_path, "labels.csv", text))


def test_the_digest_knows_the_labels_and_not_the_file() -> None:
    assert len(labels_digest(LABELLED)) == 64
    assert labels_digest(LABELLED) == labels_digest(list(LABELLED))
    assert labels_digest(LABELLED) != labels_digest(LABELLED[:2])


def test_a_judge_sees_question_expected_and_answer() -> None:
    answer = LABELLED[0].answer

    assert answer.text == "It was Ada Quill."
    assert answer.prompt.question == "Who won?"
    assert answer.prompt.accepted == ("Ada Quill", "A. Quill")


_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)


@given(st.lists(st.tuples(_texts, _texts), min_size=1, max_size=5))
def test_any_texts_survive_a_csv(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]
) -> None:
    written = io.StringIO()
    # What begins like a guarded formula is read without its guard: tests/data/test_label_sheets.py
    rows = [(f"Q{question}", "A", f"A{answer}", "1") for question, answer in texts]
    csv.writer(written).writerows([HEADER, *rows])
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_text(written.getvalue(), encoding="utf-8", newline="")

    read = [(labelled.question, labelled.text) for labelled in load_labels(path)]

    assert read == [(row[0].strip(), row[2].strip()) for row in rows]
