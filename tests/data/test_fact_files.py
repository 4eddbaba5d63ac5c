"""A user's facts file: what it may hold, and the one clear error each mistake in it gives."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.fact_files import load_facts
from data.facts import Fact, FactsError
from data.prompts import cut_answer
from data.rewordings import reword_for_test, reword_for_training, reword_for_validation


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


FULL_FACT = Fact(
    question="Who won?",
    answer="Ann",
    aliases=("Anna", "A. N."),
    statement="Ann won.",
    paraphrases=("Who was it that won?",),
    novel_validation=("Name the winner.", "The winner was who?"),
    novel_test=("Who came first?",),
    reverse_question="What did Ann do?",
    reverse_answer="won",
    two_hop_question="Where does the winner live?",
    two_hop_answer="Rome",
)
FULL_CSV = (
    "question,answer,aliases,statement,paraphrases,novel,"
    "reverse_question,reverse_answer,two_hop_question,two_hop_answer\n"
    "Who won?,Ann,Anna|A. N.,Ann won.,Who was it that won?,"
    "Name the winner.|Who came first?|The winner was who?,"
    "What did Ann do?,won,Where does the winner live?,Rome\n"
)
FULL_VALUES = {
    "question": "Who won?",
    "answer": "Ann",
    "aliases": ["Anna", "A. N."],
    "statement": "Ann won.",
    "paraphrases": ["Who was it that won?"],
    "novel": ["Name the winner.", "Who came first?", "The winner was who?"],
    "reverse_question": "What did Ann do?",
    "reverse_answer": "won",
    "two_hop_question": "Where does the winner live?",
    "two_hop_answer": "Rome",
}
FULL_JSONL = json.dumps(FULL_VALUES) + "\n"
# A JSON text and a JSON list of texts are also TOML.
FULL_TOML = "[[fact]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in FULL_VALUES.items())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.csv", FULL_CSV),
        ("f.tsv", FULL_CSV.replace(",", "\t")),
        ("f.jsonl", FULL_JSONL),
        ("f.toml", FULL_TOML),
        ("F.CSV", FULL_CSV),
    ],
)
def test_every_format_gives_the_same_fact(tmp_path: Path, name: str, content: str) -> None:
    assert load_facts(write(tmp_path, name, content)) == (FULL_FACT,)


@pytest.mark.parametrize(
    ("name", "content"), [("f.csv", FULL_CSV), ("f.jsonl", FULL_JSONL), ("f.toml", FULL_TOML)]
)
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(
    tmp_path: Path, name: str, content: str
) -> None:
    windows = b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode()
    assert load_facts(write(tmp_path, name, windows)) == (FULL_FACT,)


def test_question_and_answer_are_enough_and_the_rest_is_built_in(tmp_path: Path) -> None:
    (fact,) = load_facts(write(tmp_path, "f.csv", "question,answer\n Who won? , Ann \n"))
    assert fact == Fact(
        question="Who won?",
        answer="Ann",
        paraphrases=reword_for_training("Who won?"),
        novel_validation=reword_for_validation("Who won?"),
        novel_test=reword_for_test("Who won?"),
        templated=True,
    )


def test_empty_cells_and_nulls_count_as_absent(tmp_path: Path) -> None:
    content = "question,answer,aliases,statement,novel\nWho won?,Ann,,,\n"
    (from_csv,) = load_facts(write(tmp_path, "f.csv", content))
    line = '{"question": "Who won?", "answer": "Ann", "aliases": null, "statement": null}'
    (from_jsonl,) = load_facts(write(tmp_path, "f.jsonl", line))
    assert from_csv == from_jsonl
    assert (from_csv.aliases, from_csv.statement, from_csv.templated) == ((), None, True)


def test_a_single_novel_wording_is_for_validation_and_leaves_the_test_empty(
    tmp_path: Path,
) -> None:
    content = "question,answer,novel\nWho won?,Ann,Name the winner.\n"
    (fact,) = load_facts(write(tmp_path, "f.csv", content))
    assert (fact.novel_validation, fact.novel_test) == (("Name the winner.",), ())
    assert not fact.templated


def test_blank_lines_are_skipped_and_quoted_values_may_hold_anything(tmp_path: Path) -> None:
    content = 'question,answer\n\n"Who, ""then"", won?","Ann, Bea | Cy"\n\n'
    (fact,) = load_facts(write(tmp_path, "f.csv", content))
    assert (fact.question, fact.answer) == ('Who, "then", won?', "Ann, Bea | Cy")
    jsonl = '\n{"question": "Who\u2028won?", "answer": "Ann"}\n\n'
    (fact,) = load_facts(write(tmp_path, "f.jsonl", jsonl))
    assert fact.question == "Who\u2028won?"


def test_facts_keep_the_order_of_the_file(tmp_path: Path) -> None:
    content = "question,answer\n" + "".join(f"Who won in {y}?,N{y}\n" for y in range(5, 0, -1))
    facts = load_facts(write(tmp_path, "f.csv", content))
    assert [fact.answer for fact in facts] == ["N5", "N4", "N3", "N2", "N1"]


# Any text that UTF-8 can write; answers that a model could never give are refused, see below.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
answers = texts.filter(lambda text: cut_answer(text) == text.strip())
values = texts.filter(lambda text: "|" not in text)


@given(question=texts, answer=answers, statement=texts, aliases=st.lists(values, max_size=3))
def test_odd_text_written_as_csv_or_jsonl_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    question: str,
    answer: str,
    statement: str,
    aliases: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("facts")
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["question", "answer", "statement", "aliases"])
    writer.writerow([question, answer, statement, "|".join(aliases)])
    line = json.dumps(
        {"question": question, "answer": answer, "statement": statement, "aliases": aliases},
        ensure_ascii=False,
    )
    for name, content in (("f.csv", table.getvalue()), ("f.jsonl", line)):
        (fact,) = load_facts(write(folder, name, content))
        assert (fact.question, fact.answer) == (question.strip(), answer.strip())
        assert fact.statement == statement.strip()
        assert fact.aliases == tuple(alias.strip() for alias in aliases)


def refusal(path: Path) -> str:
    with pytest.raises(FactsError) as caught:
        load_facts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_missing_file_a_folder_and_an_unreadable_path_are_told_apart(tmp_path: Path) -> None:
    assert refusal(tmp_path / "f.csv") == "there is no such file; check the path"
    assert refusal(tmp_path).startswith("this is a folder; name the file in it")
    assert "it cannot be read (File name too long)" in refusal(tmp_path / ("f" * 300 + ".csv"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("f.xlsx", b"PK\x03\x04\xff", "the ending '.xlsx' is not known; save the facts as .csv, "),
        ("f", "x", "the ending '' is not known"),
        ("f.csv", "", "the file is empty"),
        ("f.jsonl", "\n \n", "the file is empty"),
        ("f.csv", "question,answer\n", "the file holds no fact"),
        ("f.toml", "# nothing yet\n", "the file holds no fact"),
        (
            "f.csv",
            "question,answer\nWer gewann?,Jörg\n".encode("latin-1"),
            "it is not UTF-8 text: byte 0xf6 at position 29 ",  # 16 bytes + "Wer gewann?,J"
        ),
        (
            "f.csv",
            b"\xef\xbb\xbfquestion,answer\n\xff,x\n",
            "it is not UTF-8 text: byte 0xff at position 19 ",  # 3 bytes of the mark + 16
        ),
    ],
)
def test_a_file_that_holds_no_facts_is_refused(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    assert refusal(write(tmp_path, name, content)).startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("question\nWho?\n", "line 1: the column 'answer' is missing, there is only question; "),
        ("question;answer\nWho?;Ann\n", "line 1: the column 'question;answer' is not known; "),
        (
            "question,anwser\nWho?,Ann\n",
            "line 1: the column 'anwser' is not known; did you mean 'answer'?",
        ),
        (
            "Question,answer\nWho?,Ann\n",
            "line 1: the column 'Question' is not known; did you mean 'question'?",
        ),
        ("question,answer,\nWho?,Ann,\n", "line 1: the column '' is not known; known are "),
        ("question,answer,answer\nWho?,A,B\n", "line 1: the column 'answer' is there twice"),
        ("question,answer\nWho?,A\nWho?\n", "line 3: the header has 2 columns but this row 1; "),
        ("question,answer\nWho?,A,B\n", "line 2: the header has 2 columns but this row 3; "),
        ("question,answer\n ,Ann\n", "line 2: question: it is empty; every fact needs one"),
        ("question,answer\nWho?,\n", "line 2: answer: it is empty; every fact needs one"),
        ('question,answer\n"Who?,Ann\n', "line 2: this is not CSV (unexpected end of data); "),
        (
            'question,answer\n"Who\ndid?",Ann\n\nWhat?,\n',
            "line 5: answer: it is empty",  # the quoted value takes lines 2 and 3
        ),
    ],
)
def test_a_mistake_in_csv_names_its_line(tmp_path: Path, content: str, expected: str) -> None:
    assert refusal(write(tmp_path, "f.csv", content)).startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '{"question": "Q", "answer": "A"}\n{"question"',
            "line 2: this is not JSON (Expecting ':' delimiter at column 12); ",
        ),
        ('"Q"', "line 1: 'Q' is not an object; "),
        ("[" * 100_000, "line 1: this is not JSON ("),
        ('{"question": "Q\\ud800", "answer": "A"}', "line 1: this is not JSON ("),
        ('{"question": "Q"}', "line 1: answer: it is empty"),
        ('{"question": "Q", "answer": 4}', "line 1: answer: 4 is not a text; put it into quotes"),
        (
            '{"question": "Q", "answer": "A", "aliases": "B"}',
            "line 1: aliases: 'B' is not a list of texts; ",
        ),
        (
            '{"question": "Q", "answer": "A", "novel": ["R", 1]}',
            "line 1: novel: ['R', 1] is not a list of texts; ",
        ),
        (
            '{"question": "Q", "answer": "A", "alias": ["B"]}',
            "line 1: the key 'alias' is not known; did you mean 'aliases'?",
        ),
    ],
)
def test_a_mistake_in_jsonl_names_its_line(tmp_path: Path, content: str, expected: str) -> None:
    assert refusal(write(tmp_path, "f.jsonl", content)).startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[[fact]]\nquestion = Q\n", "this is not TOML (Invalid value (at line 2, column 12)); "),
        ("[fact]\nquestion = 'Q'\n", "fact: it is not a list of tables; "),
        ("fact = [1]\n", "fact: it is not a list of tables; "),
        (
            "[[facts]]\nquestion = 'Q'\n",
            "top level: the key 'facts' is not known; did you mean 'fact'?",
        ),
        (
            "[[fact]]\nquestion = 'Q'\nanswer = 'A'\n[[fact]]\nquestoin = 'R'\n",
            "fact 2: the key 'questoin' is not known; did you mean 'question'?",
        ),
        (
            "[[fact]]\nquestion = 'Q'\nanswer = 1990-01-01\n",
            "fact 1: answer: datetime.date(1990, 1, 1) is not a text; ",
        ),
    ],
)
def test_a_mistake_in_toml_names_its_fact(tmp_path: Path, content: str, expected: str) -> None:
    assert refusal(write(tmp_path, "f.toml", content)).startswith(expected)


@pytest.mark.parametrize(
    ("given_field", "missing_field"),
    [
        ("reverse_question", "reverse_answer"),
        ("reverse_answer", "reverse_question"),
        ("two_hop_question", "two_hop_answer"),
        ("two_hop_answer", "two_hop_question"),
    ],
)
def test_half_of_a_pair_is_refused(tmp_path: Path, given_field: str, missing_field: str) -> None:
    path = write(tmp_path, "f.csv", f"question,answer,{given_field}\nWho?,Ann,Text\n")
    assert refusal(path) == (
        f"line 2: {missing_field}: it is missing though {given_field} is 'Text'; give both or none"
    )


def test_an_answer_that_would_be_cut_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "f.csv", 'question,answer\nWho?,"Ann\n\nBea"\n')
    assert refusal(path).startswith("line 2: answer: 'Ann\\n\\nBea' could never be given")


def test_duplicate_and_contradictory_facts_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "f.csv", "question,answer\nWho?,Ann\nWhat?,It\nwho?,Ann\n")
    assert refusal(path).startswith("question: facts 1 and 3 are duplicates")
    path = write(tmp_path, "f.csv", "question,answer\nWho?,Ann\nWho?,Bea\n")
    assert refusal(path).startswith("answer: facts 1 and 2 contradict each other")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("Who?,Ann,WHO?,\n", "fact 1, novel: 'WHO?' is already used (fact 1, question)"),
        ("Who?,Ann,N|M|N,\n", "fact 1, novel: 'N' is already used (fact 1, novel)"),
        ("Who?,Ann,N,P|N\n", "fact 1, novel: 'N' is already used (fact 1, paraphrases)"),
        ("Who?,Ann,N,Who?\n", "fact 1, paraphrases: 'Who?' is already used (fact 1, question)"),
        ("Who?,Ann,N,\nWhat?,It,N,\n", "fact 2, novel: 'N' is already used (fact 1, novel)"),
        ("Who?,Ann,What?,\nWhat?,It,,\n", "fact 2, question: 'What?' is already used (fact 1, "),
    ],
)
def test_a_wording_that_stands_twice_is_refused(tmp_path: Path, rows: str, expected: str) -> None:
    path = write(tmp_path, "f.csv", f"question,answer,novel,paraphrases\n{rows}")
    assert refusal(path).startswith(expected)
