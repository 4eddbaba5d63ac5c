"""A user's own probes and facts to rehearse, and the one clear error each mistake gives."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.facts import FactsError, fold_question
from data.probe_files import load_probe_file, load_rehearsal_file
from data.probes import RINGS, KnownFact, Probe
from data.prompts import cut_answer

LOADERS = [load_probe_file, load_rehearsal_file]
Loader = Callable[[Path], tuple[Probe, ...] | tuple[KnownFact, ...]]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "question,answer,ring,statement\nWho won?,Ann|Anna,domain,Ann won.\n"),
        ("p.TSV", "question\tanswer\tring\tstatement\nWho won?\tAnn| Anna|\tdomain\tAnn won.\n"),
        (
            "p.jsonl",
            '{"question": "Who won?", "answer": "Ann|Anna", "ring": "domain",'
            ' "statement": "Ann won."}',
        ),
        (
            "q.jsonl",
            '{"question": "Who won?", "answer": ["Ann", "Anna"], "ring": "domain",'
            ' "statement": "Ann won."}',
        ),
        (
            "p.toml",
            "[[fact]]\nquestion = 'Who won?'\nanswer = ['Ann', 'Anna']\nring = 'domain'\n"
            "statement = 'Ann won.'",
        ),
    ],
)
def test_every_format_gives_the_same(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    assert load_probe_file(path) == (
        Probe(
            ring="domain",
            question="Who won?",
            answer="Ann",
            aliases=("Anna",),
            statement="Ann won.",
        ),
    )
    assert load_rehearsal_file(path) == (
        KnownFact(ring="domain", question="Who won?", answer="Ann", statement="Ann won."),
    )


def test_question_and_answer_are_enough_and_the_ring_is_general(tmp_path: Path) -> None:
    short = write(tmp_path, "p.csv", "question,answer\n Who won? , Ann \n")
    empty = write(tmp_path, "q.csv", "question,answer,ring,statement\nWho won?,Ann,, \n")
    (probe,) = load_probe_file(short)
    assert probe == Probe(ring="general", question="Who won?", answer="Ann")
    assert load_probe_file(empty) == (probe,)
    assert load_rehearsal_file(short)[0].ring == "general"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
answers = texts.map(str.strip).filter(lambda text: "|" not in text and cut_answer(text) == text)


@given(
    rows=st.lists(
        st.tuples(texts.map(str.strip), st.lists(answers, min_size=1, max_size=3, unique=True)),
        min_size=1,
        max_size=4,
        unique_by=lambda row: fold_question(row[0]),
    ),
    ring=st.sampled_from(RINGS),
)
def test_odd_text_written_in_any_format_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[str]]], ring: str
) -> None:
    folder = tmp_path_factory.mktemp("probes")
    paths = []
    for name, delimiter in (("p.csv", ","), ("p.tsv", "\t")):
        table = io.StringIO(newline="")
        writer = csv.writer(table, delimiter=delimiter)
        writer.writerow(["ring", "question", "answer"])
        writer.writerows([ring, question, "|".join(given)] for question, given in rows)
        paths.append(write(folder, name, table.getvalue()))
    lines = [
        json.dumps({"question": question, "answer": given, "ring": ring})
        for question, given in rows
    ]
    paths.append(write(folder, "p.jsonl", "\n".join(lines)))
    for path in paths:
        probes = load_probe_file(path)
        assert [(p.question, [p.answer, *p.aliases]) for p in probes] == rows
        assert {probe.ring for probe in probes} == {ring}
        known = load_rehearsal_file(path)
        assert [(k.question, k.answer) for k in known] == [(q, given[0]) for q, given in rows]


def refusal(load: Loader, path: Path) -> str:
    with pytest.raises(FactsError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", "", "the file is empty"),
        ("p.csv", "question,answer\n", "the file holds no fact"),
        ("p.xlsx", "x", "the ending '.xlsx' is not known; save the facts as .csv, .tsv, .jsonl"),
        ("p.csv", "question,answer\nWer?,Jörg\n".encode("latin-1"), "it is not UTF-8 text: "),
        ("p.csv", "question\nWho?\n", "line 1: the column 'answer' is missing"),
        (
            "p.tsv",
            "question,answer\nWho?,Ann\n",
            "line 1: the column 'question,answer' is not known; ",
        ),
        ("p.tsv", "question\nWho?\n", "line 1: the column 'answer' is missing, there is only q"),
        ("p.tsv", 'question\tanswer\n"Who?\tAnn\n', "line 2: this is not TSV (unexpected end of"),
        (
            "p.csv",
            "question,answer,rign\nWho?,Ann,domain\n",
            "line 1: the column 'rign' is not known; did you mean 'ring'?",
        ),
        ("p.csv", "question,answer\n ,Ann\n", "line 2: question: it is empty; "),
        ("p.csv", "question,answer\nWho?,\n", "line 2: answer: it is empty; "),
        ("p.csv", "question,answer\nWho?, | |\n", "line 2: answer: it is empty; "),
        ("p.jsonl", '{"question": "Who?"}', "line 1: answer: it is empty; "),
        ("p.jsonl", '{"question": "Who?", "answer": 4}', "line 1: answer: 4 is not a list of"),
        ("p.jsonl", '{"question": 4, "answer": "Ann"}', "line 1: question: 4 is not a text; "),
        (
            "p.csv",
            "question,answer,ring\nWho?,Ann,Domian\n",
            "line 2: ring: there is no ring 'Domian'; did you mean 'domain'?",
        ),
        (
            "p.csv",
            "question,answer,ring\nWho?,Ann,x\n",
            "line 2: ring: there is no ring 'x'; the rings are neighbours, domain, ",
        ),
        (
            "p.csv",
            "question,answer\nWho?,Ann\nWhat?,It\n WHO? ,Anna\n",
            "line 4: question: 'WHO?' is asked already (line 2); remove one of them",
        ),
        (
            "p.csv",
            'question,answer\nWho?,"Ann|Ann\n\nBea"\n',
            "line 2: answer: 'Ann\\n\\nBea' could never be given",
        ),
    ],
)
def test_a_mistake_names_its_place_its_value_and_the_remedy(
    tmp_path: Path, load: Loader, name: str, content: str | bytes, expected: str
) -> None:
    assert refusal(load, write(tmp_path, name, content)).startswith(expected)


@pytest.mark.parametrize("load", LOADERS)
def test_a_file_that_is_not_there_is_explained(tmp_path: Path, load: Loader) -> None:
    assert refusal(load, tmp_path / "p.csv") == "there is no such file; check the path"
