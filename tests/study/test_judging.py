"""`remember judge`: a judge is checked against people, and judges a finished study again."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from data.measurements import Answer, Verdict
from storage.database import open_storage
from storage.reader import read_agreements, read_rejudged, read_study, read_verdicts
from study import judge_making
from study.commands import judging
from study.commands.application import run_application
from study.spec import JudgeSpec
from tests.study.tiny_study import FACTS, STUDY_FILE

SHORTER = STUDY_FILE.replace(
    "trials = 3\nconfirming_seeds = 1", "trials = 2\nconfirming_seeds = 0"
)
HEADER = ("question", "expected", "answer", "verdict")
Labelled = tuple[str, str, str, str]


class Contrary:
    """A judge that accepts what names no expected text, and refuses what does."""

    name = "contrary"
    unreachable_reason = None

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(
            Verdict(
                answer=answer,
                label="incorrect" if answer.text in answer.prompt.accepted else "correct",
                judge=self.name,
            )
            for answer in answers
        )


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commands run in an empty folder, with no database named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    named = judge_making.judge_named
    monkeypatch.setattr(
        judging,
        "judge_named",
        lambda text, cache: Contrary() if text == "contrary" else named(text, cache),
    )
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def write_labels(rows: Sequence[Labelled], path: str = "labels.csv") -> str:
    written = io.StringIO()
    csv.writer(written).writerows([HEADER, *rows])
    Path(path).write_text(written.getvalue(), encoding="utf-8")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run_application([*arguments, "--json"])
    shown = json.loads(capsys.readouterr().out)  # fails unless stdout is one JSON object
    assert isinstance(shown, dict)
    return code, shown


# 40 right answers that are seen, 20 that are not; 30 wrong ones that are seen, 10 that are not.
HUNDRED: list[Labelled] = [
    *[("Who won?", "Ada Quill", "Ada Quill", "correct")] * 40,
    *[("Who won?", "Ada Quill", "A.Q.", "right")] * 20,
    *[("Who won?", "Ada Quill", "Tom Reed", "wrong")] * 25,
    *[("Who won?", "Ada Quill", "I do not know.", "not_attempted")] * 5,
    *[("Who won?", "Ada Quill", "Ada Quill", "incorrect")] * 10,
]


def test_a_judge_is_checked_against_labels(capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_labels(HUNDRED)

    assert run_application(["judge", "check", labels]) == 0
    said = capsys.readouterr().out
    for part in (
        "100 judged",
        "40 accepted, 20 refused",
        "30 refused, 10 accepted",
        "67 % (54–77 %)",  # Wilson: 40 of 60
        "75 % (60–86 %)",  # 30 of 40
        "0.400 (",
        "-0.100 (",
        "McNemar's p 0.099",
        "rests on 100 labelled answers",
    ):
        assert part in said
    assert said.count("A.Q.") == 20

    code, shown = run_json(capsys, "judge", "check", labels)
    assert code == 0
    assert shown["judge"] == "matcher"
    assert [
        shown[f"{hit}_{sign}"] for hit in ("true", "false") for sign in ("positives", "negatives")
    ] == [
        40,
        30,
        10,
        20,
    ]
    assert shown["kappa"]["value"] == pytest.approx(0.4)
    assert shown["bias"]["value"] == pytest.approx(-0.1)
    assert len(shown["disagreements"]) == 30
    assert shown["disagreements"][0] == {
        "question": "Who won?",
        "expected": ["Ada Quill"],
        "answer": "A.Q.",
        "people": "correct",
        "judge": "incorrect",
    }
    assert "at least 200" in shown["not_correctable"]


def test_enough_labels_can_correct(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = run_json(capsys, "judge", "check", write_labels(HUNDRED * 2))

    assert code == 0
    assert shown["not_correctable"] is None
    assert run_application(["judge", "check", "labels.csv"]) == 0
    said = capsys.readouterr().out
    assert "They are enough to correct the recall of a study" in said
    assert "and 10 more; --json lists all" in said


def test_a_judge_worse_than_chance_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_labels(HUNDRED * 3)

    assert run_application(["judge", "check", labels, "--judge", "contrary"]) == 3
    output = capsys.readouterr()
    assert "Recall cannot be corrected by these answers" in output.out
    assert "contrary is of no use as a judge of such answers" in " ".join(output.err.split())


def test_what_an_answer_says_does_not_act_on_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = write_labels([("Who [bold]won?", "Ada", "\x1b[31mTom\u202e [red]x[/red]", "right")])

    assert run_application(["judge", "check", labels]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert r"\x1b[31mTom" in said.replace("\n", "")
    assert "[red]" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sheet", "new.csv"], "there is no database"),
        (["sheet", "new.toml"], "name a file that ends in .csv, .tsv, .jsonl"),
        (["sheet", "labels.csv"], "overwrite it with --force"),
        (["sheet", ".csv"], "the ending of '.csv' is not known"),
        (["check", "none.csv"], "no such file"),
        (["check", "labels.csv", "--judge", "macher"], "did you mean 'matcher'?"),
        (["check", "labels.csv", "--storage", "sqlite:///x.db"], "name: it is missing"),
        (["check", "labels.csv", "--name", "tiny"], "there is no database"),
        (["check", "bad.csv"], "line 2: verdict: 'perhaps' is not allowed"),
        (["run"], "there is no database"),
        (["run", "--judge", "human"], "'human' is not a judge"),
    ],
)
def test_what_cannot_be_judged_is_explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    write_labels(HUNDRED)
    write_labels([("Q?", "A", "A", "perhaps")], "bad.csv")

    assert run_application(["judge", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert said in " ".join(output.err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "labels.csv"]


def test_a_finished_study_is_judged_again_and_its_judge_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("facts.csv").write_text(FACTS)
    Path("study.toml").write_text(SHORTER)
    _, study = run_json(capsys, "run", "facts.csv", "--study", "study.toml")
    url = "sqlite:///runs/remember.db"
    with closing(open_storage(url)) as storage:
        before = read_study(storage, "tiny")
        stored = {kept.id: read_verdicts(storage, kept.id) for kept in before.measurements}

    # No command needs a model from here on.
    monkeypatch.delattr("study.engine.load_base_model")
    code, same = run_json(capsys, "judge", "run")
    assert code == 0
    assert (same["study"], same["judge"]) == ("tiny", "matcher")
    assert len(same["measurements"]) == len(before.measurements)
    for each in same["measurements"]:
        assert each["now"] == each["before"]
        assert each["changed"] == 0
        assert each["reproduces"]

    code, other = run_json(capsys, "judge", "run", "--name", "tiny", "--judge", "contrary")
    assert code == 0
    (base,) = (each for each in other["measurements"] if each["purpose"] == "base")
    assert base["before"]["recall"]["value"] == 0
    assert base["now"]["recall"]["value"] == 1
    assert base["changed"] > 0
    assert run_application(["judge", "run", "--judge", "contrary"]) == 0
    said = capsys.readouterr().out
    assert "now: by contrary" in said
    assert "base" in said

    # The study is as it was, and the second judging beside it.
    with closing(open_storage(url)) as storage:
        assert read_study(storage, "tiny") == before
        for id_, verdicts in stored.items():
            assert read_verdicts(storage, id_) == verdicts
            again = read_rejudged(storage, id_, "contrary")
            assert [verdict.answer for verdict in again] == [v.answer for v in verdicts]
            assert {verdict.judge for verdict in again} == {"contrary"}
    _, shown = run_json(capsys, "run", "facts.csv", "--study", "study.toml")
    assert shown == study

    # Labels of its own answers make a correction; others do not, however many.
    assert run_application(["judge", "check", write_labels(HUNDRED * 2), "--name", "tiny"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0 of the labelled answers are answers of study 'tiny'" in said
    assert "rests on 0 labelled answers" in said
    own: list[Labelled] = [
        (
            verdict.answer.prompt.question,
            "|".join(verdict.answer.prompt.accepted),
            verdict.answer.text,
            "right" if verdict.is_correct else "wrong",
        )
        for verdicts in stored.values()
        for verdict in verdicts
    ]
    assert len(own) > 200
    code, checked = run_json(
        capsys, "judge", "check", write_labels(own), "--name", "tiny", "--storage", url
    )
    assert code == 0
    assert checked["of_study"]["judged"] == len(own)
    assert checked["kappa"]["value"] == 1
    assert checked["not_correctable"] is None
    assert [each["trial"] for each in checked["corrected"]] == [
        member["trial"] for member in study["front"]
    ]
    for each in checked["corrected"]:
        assert each["corrected_recall"]["value"] == pytest.approx(each["recall"]["value"])
    assert run_application(["judge", "check", "labels.csv", "--name", "tiny"]) == 0
    assert "corrected" in capsys.readouterr().out
    with closing(open_storage(url)) as storage:
        first, second = read_agreements(storage, "tiny")
    assert (first.labelled, first.of_study.judged) == (200, 0)
    assert second.agreement == second.of_study

    check_sheets(capsys, stored, url)

    # Another judge's agreement corrects nothing that the matcher judged.
    _, checked = run_json(
        capsys, "judge", "check", "labels.csv", "--name", "tiny", "--judge", "contrary"
    )
    assert checked["corrected"] == []
    assert run_application(["judge", "check", "labels.csv", "--name", "nobody"]) == 2
    assert "there is none called 'nobody'; there are: tiny" in capsys.readouterr().err


def check_sheets(
    capsys: pytest.CaptureFixture[str], stored: Mapping[int, Sequence[Verdict]], url: str
) -> None:
    """Check the sheets of a finished study; `stored` are its verdicts by measurement."""
    label_of = {
        (verdict.answer.prompt.question, verdict.answer.text): verdict.label
        for verdicts in stored.values()
        for verdict in verdicts
        if verdict.answer.prompt.phrasing != "probe"
    }
    arguments = ["judge", "sheet", "sheets/some.csv", "--answers", "12"]
    assert run_application([*arguments, "--storage", url]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "sheets/some.csv: 12 answers of study 'tiny', no verdicts. Correcting recall takes 200"
        in said
    )
    assert said.endswith(f"remember judge check sheets/some.csv --name tiny --storage {url}")
    text = Path("sheets/some.csv").read_text(encoding="utf-8")
    header, *rows = csv.reader(io.StringIO(text))
    assert tuple(header) == HEADER
    assert len(rows) == 12
    labels = [label_of[question, answer] for question, _, answer, _ in rows]
    assert 0 < labels.count("correct") < 12
    assert {verdict for *_, verdict in rows} == {""}

    # What is there stays, unless it is told otherwise; the same seed writes the same.
    filled = text.replace(",\n", ",yes\n")
    Path("sheets/some.csv").write_text(filled, encoding="utf-8")
    assert run_application(arguments) == 2
    assert "'sheets/some.csv' is there already" in " ".join(capsys.readouterr().err.split())
    assert Path("sheets/some.csv").read_text(encoding="utf-8") == filled
    assert run_application([*arguments, "--force"]) == 0
    assert Path("sheets/some.csv").read_text(encoding="utf-8") == text
    assert run_application([*arguments, "--force", "--seed", "1"]) == 0
    assert Path("sheets/some.csv").read_text(encoding="utf-8") != text
    assert [path.name for path in Path("sheets").iterdir()] == ["some.csv"]
    capsys.readouterr()

    # All there are, filled in half and then wholly.
    assert run_application(["judge", "sheet", "all.jsonl", "--answers", "9999"]) == 0
    assert "there are no more that differ" in " ".join(capsys.readouterr().out.split())
    lines = [json.loads(line) for line in Path("all.jsonl").read_text("utf-8").splitlines()]
    for line in lines[1:]:
        line["verdict"] = label_of[line["question"], line["answer"]]
    write_lines(lines)
    assert run_application(["judge", "check", "all.jsonl", "--name", "tiny"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"verdict: 1 of {len(lines)} rows have none, the first at line 1" in said
    lines[0]["verdict"] = label_of[lines[0]["question"], lines[0]["answer"]]
    write_lines(lines)
    code, checked = run_json(capsys, "judge", "check", "all.jsonl", "--name", "tiny")
    assert code == 0
    assert checked["of_study"]["judged"] == len(lines) == checked["judged"]
    assert checked["disagreements"] == []


def write_lines(lines: Sequence[object]) -> None:
    Path("all.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


@pytest.mark.parametrize(
    ("judge", "flags"),
    [
        (JudgeSpec(), []),
        (JudgeSpec(kind="model", model="some/model"), ["--judge", "model:some/model"]),
        (JudgeSpec(kind="cascade", model="a b"), ["--judge", "cascade:a b"]),
        (JudgeSpec(kind="cascade"), ["--judge", "STUDY.toml"]),
    ],
    ids=["matcher", "model", "cascade", "server"],
)
def test_the_next_command_names_the_studys_judge(judge: JudgeSpec, flags: list[str]) -> None:
    assert judging._judge_flags(judge) == flags
