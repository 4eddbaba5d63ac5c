"""The command line: every mistake is one message, and every state of a study is shown."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from study.commands.application import run_application
from study.live_view import LiveView
from tests.study.tiny_study import FACTS, STUDY_FILE


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commands run in an empty folder, with no database named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def write(path: str, text: str | bytes) -> str:
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], *said: str, folder: Path
) -> None:
    """Run a command that must end with code 2, one message that says all of `said`, no trace."""
    before = tree(folder)
    assert run_application(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    message = " ".join(output.err.split())
    for part in said:
        assert part in message
    assert "Traceback" not in message
    assert message.count("error: ") == 1
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, ("none.csv", "no such file", "check the path")),
        ("empty.csv", "", ("empty.csv", "the file is empty", "at least one question")),
        ("head.csv", "question,answer\n", ("head.csv", "holds no fact")),
        ("column.csv", "question\nWho?\n", ("'answer' is missing", "the first line names")),
        ("row.csv", "question,answer\nWho?\n", ("line 2", "2 columns", "1")),
        (
            "twice.csv",
            "question,answer\nWho is it?,Ada\nwho is  it?,Ada\n",
            ("facts 1 and 2 are duplicates", "remove one"),
        ),
        (
            "against.csv",
            "question,answer\nWho is it?,Ada\nWho is it?,Tom\n",
            ("facts 1 and 2 contradict", "'Ada' and 'Tom'", "keep one"),
        ),
        (
            "long.csv",
            f"question,answer\nWho is it?,{'Ada Quill ' * 400}\n",
            ("answer: fact 1", "at most 512", "shorten it"),
        ),
        (
            "latin.csv",
            "question,answer\nWho is it?,Zoë\n".encode("latin-1"),
            ("not UTF-8", "0xeb", "save the file"),
        ),
        ("facts.docx", "question,answer\n", ("'.docx' is not known", ".csv")),
    ],
)
def test_facts_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    content: str | bytes | None,
    said: tuple[str, ...],
) -> None:
    if content is not None:
        write(name, content)
    assert_refused(capsys, ["run", name], *said, folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[space]\nrank = 0", ("rank: 0 is not allowed", "at least 1")),
        ("[space]\nlearning_rate = -1e-3", ("learning_rate: -0.001", "above 0")),
        (
            "[space]\nlearning_rate = { low = 1e-2, high = 1e-4 }",
            ("learning_rate", "0.01 to 0.0001 is empty", "low must be at most high"),
        ),
        ("[space]\nepochs = 2.5", ("epochs: 2.5", "a whole number")),
        ("[space]\nepochs = []", ("epochs", "the list is empty")),
        ("[space]\ncutoff = 4096", ("cutoff: 4096", "at most 512")),
        ("[space]\ntarget_modules = 'heads'", ("target_modules: 'heads'", "one of")),
        ("[space]\nranks = 4", ("space.ranks", "did you mean 'rank'?")),
        ("trails = 4", ("trails: there is no such key", "did you mean 'trials'?")),
        ("sampling = ['gredy']", ("no preset 'gredy'", "did you mean 'greedy'?")),
        ("trials = ", ("not valid TOML",)),
    ],
)
def test_study_files_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: tuple[str, ...]
) -> None:
    write("facts.csv", FACTS)
    file = write("study.toml", text)
    assert_refused(capsys, ["run", "facts.csv", "--study", file], *said, folder=tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--trials", "-1"], ("trials: -1 is not allowed", "greater than or equal to 1")),
        (["--slots", "0"], ("slots: 0 is not allowed",)),
        (["--seed", "-3"], ("seed: -3 is not allowed",)),
        (["--name", "../escape"], ("name: '../escape' is not allowed",)),
        (["--study", "none.toml"], ("no file none.toml", "check the path")),
        (["--model", "./nowhere"], ("'./nowhere' is not a model folder", "name a folder")),
        (["--out", "taken"], ("out: 'taken' cannot be written to", "--out")),
        (["--out", "taken/below"], ("taken", "not a writable folder")),
        (["--out", "full", "--name", "taken"], ("full", "not a writable folder")),
        (["--out", "x" * 300], ("out: 'xxx", "name another with --out")),
        (["--storage", "sqlite:///taken"], ("taken is not a SQLite database", "another name")),
        (["--storage", "sqlite:///no/where.db"], ("no", "does not exist; create it")),
        (["--storage", "redis://x/y"], ("'redis'", "sqlite")),
        (["--storage", "nonsense"], ("not a database URL", "sqlite:///PATH")),
    ],
)
def test_flags_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str], said: tuple[str, ...]
) -> None:
    write("facts.csv", FACTS)
    write("taken", "a file that is neither a folder nor a database\n")
    (tmp_path / "full").mkdir()
    write("full/taken", "")
    assert_refused(capsys, ["run", "facts.csv", *flags], *said, folder=tmp_path)


def test_a_word_that_is_no_number_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_application(["run", "--trials", "many"]) == 2
    message = capsys.readouterr().err
    assert "--trials" in message
    assert "valid integer" in message


def test_what_an_error_quotes_does_not_act_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("study.toml", r'"\u001b]52;c;ZXZpbA==" = 1')
    assert run_application(["run", "--study", "study.toml"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"\x1b]52;c;ZXZpbA==: there is no such key" in " ".join(said.split())


@pytest.mark.parametrize("command", [["show", "0"], ["export", "0", "--to", "x"], ["ask", "0"]])
def test_without_a_database_the_remedy_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    assert_refused(capsys, command, "there is no database", "run a study first", folder=tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--trial", "3"], "revision, trial: a trial has its model; name one of them"),
        ([], "loading.revision: 'v1' is not allowed with 'pocket', which is not read from"),
        (["--revision", ""], "loading.revision: '' is not allowed"),
    ],
)
def test_a_revision_is_a_models_on_the_hub(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str], said: str
) -> None:
    assert_refused(capsys, ["measure", "--revision", "v1", *flags], said, folder=tmp_path)


def test_a_folder_that_is_no_adapter(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert_refused(
        capsys,
        ["measure", "--adapter", "folder"],
        "folder has no adapter_config.json",
        "name a folder that PEFT wrote",
        folder=tmp_path,
    )
    assert_refused(
        capsys,
        ["measure", "--adapter", "folder", "--trial", "3"],
        "name one of them",
        folder=tmp_path,
    )
    assert_refused(
        capsys,
        ["measure", "--presets", "all"],
        "they are measured of an adapter",
        folder=tmp_path,
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('sampler = "grid"', "learning_rate: a grid needs a list"),
        ('sampler = "grid"\nsampling = ["matrix"]', "a grid cannot go with the matrix"),
        ("[[start]]\nrnk = 4", "start: there is no setting 'rnk'; did you mean 'rank'?"),
        ("[[start]]\nrank = 5", "rank: 5 is not allowed; in this study's space it must be one of"),
        ('[[start]]\nsampling = "Yara"', "sampling: 'Yara' is not allowed"),
        ('[[start]]\nrecipe = "webui June 2023"', "start, webui June 2023: epochs: 3 is not"),
        ('start_from = { study = "earlier" }', "there is no study 'earlier' at sqlite:///runs"),
        (
            'sampling = ["matrix"]\nfree_points = "all"',
            "error: study.toml: free_points: all goes with presets, not with the matrix",
        ),
        (
            'free_points = "front"\nsingle_objective = {}',
            "error: study.toml: free_points: front goes with two objectives",
        ),
        ("single_objective = { pruner = 'medium' }", "single_objective.pruner: 'medium' is not"),
        ("single_objective = { lambda = 1 }", "the keys are loss_weight, pruner"),
        ("max_knowledge_loss = 1.5", "max_knowledge_loss: 1.5 is not allowed"),
        ("[budget]\nhours = 0", "budget.hours: 0 is not allowed"),
        ("[budget]\nhour = 1", "budget.hour: there is no such key; did you mean 'hours'?"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: str, said: str
) -> None:
    write("facts.csv", FACTS)
    arguments = ["run", "facts.csv", "--study", write("study.toml", lines)]
    assert run_application(arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_facts_that_the_model_knows_are_nothing_to_learn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(
        "known.csv",
        "question,answer,novel\n"
        "What is the capital of France?,Paris,Which city is the capital of France?\n",
    )
    assert run_application(["run", "known.csv"]) == 3
    output = capsys.readouterr()
    assert "pocket already knows all 1 facts; nothing to teach" in output.err
    assert output.out == ""
    assert not (tmp_path / "runs").exists()


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run_application([*arguments, "--json"])
    shown = json.loads(capsys.readouterr().out)  # fails unless stdout is one JSON object
    assert isinstance(shown, dict)
    return code, shown


@pytest.fixture
def files() -> list[str]:
    return [write("facts.csv", FACTS), "--study", write("study.toml", STUDY_FILE)]


def test_a_study_from_its_first_run_to_its_last_adapter(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    files: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Killed after the last trial and before the best adapters were asked the test wordings:
    with monkeypatch.context() as killed:
        killed.setattr("study.setting_up.confirm", lambda *_: True)
        _, unconfirmed = run_json(capsys, "run", *files)
    assert unconfirmed["kept_aside_recall"] is None
    code, shown = run_json(capsys, "run", *files)
    assert shown["kept_aside_recall"] is not None
    assert shown["front"] == unconfirmed["front"]
    assert shown["study"] == "tiny"
    assert shown["storage"] == "sqlite:///runs/remember.db"
    trials = shown["trials"]
    assert trials["complete"] + trials["pruned"] + trials["failed"] == 3
    assert trials["measured"] >= trials["complete"] > 0
    assert (shown["base"]["recall"], shown["base"]["knowledge_loss"]) == (0, 0)
    floors = {floor["name"]: floor for floor in shown["floors"]}
    assert (floors["base"]["recall"], floors["base"]["context_tokens"]) == (0, 0)
    assert floors["all facts"]["context_tokens"] > floors["best fact"]["context_tokens"] > 0
    assert "| the best-matching fact in the prompt | " in (
        (tmp_path / "runs/tiny/RESULTS.md").read_text(encoding="utf-8")
    )
    assert (code == 0) == bool(shown["front"])
    assert shown["front"]
    for member in shown["front"]:
        assert {"trial", "recall", "knowledge_loss", "recall_interval", "recipe", "sampling"} <= {
            *member
        }
        assert Path(member["adapter"], "adapter_model.safetensors").is_file()
        assert member["recipe"]["rank"] == 4
        assert member["sampling"]["name"] == "greedy"
    assert (tmp_path / "runs/tiny/report.html").is_file()
    assert (tmp_path / "runs/tiny/RESULTS.md").is_file()

    # The same command shows the study again, without a model.
    with monkeypatch.context() as without_a_model:
        without_a_model.delattr("study.engine.load_base_model")
        assert run_json(capsys, "run", *files) == (code, shown)

    # A larger total goes on with it.
    with monkeypatch.context() as asked_once:
        asked_once.delattr("study.setting_up.measure_floors")
        code, continued = run_json(capsys, "run", *files, "--trials", "4")
    assert continued["floors"] == unconfirmed["floors"]
    assert sum(continued["trials"][state] for state in ("complete", "pruned", "failed")) == 4

    # Other facts, another space or another seed under its name are another study.
    before = tree(tmp_path)
    for changed, said in (
        (["--seed", "5"], "seed was 0, now 5"),
        (["--study", write("study.toml", STUDY_FILE.replace("rank = 4", "rank = 8"))], "space"),
    ):
        assert run_application(["run", "facts.csv", *files[1:], "--trials", "4", *changed]) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert "'tiny' exists and differs" in message
        assert said in message
    write("study.toml", STUDY_FILE)
    write("facts.csv", FACTS + "Who paints the moon?,Sol Verdi\n")
    assert run_application(["run", *files, "--trials", "4"]) == 2
    assert "'tiny' exists and differs (facts was" in " ".join(capsys.readouterr().err.split())
    write("facts.csv", FACTS)
    after = tree(tmp_path)
    assert after.pop("runs/remember.db")
    assert before.pop("runs/remember.db")
    assert after == before

    # Trials are shown, asked and exported; those that are not there are explained.
    best = str(continued["front"][0]["trial"])
    assert run_application(["show", best]) == 0
    assert "Vessa" in capsys.readouterr().out
    assert run_application(["ask", best, "What is the capital of France?"]) == 0
    assert "Paris" in capsys.readouterr().out
    in_a_chat = ["ask", best, "Who?", "--style", "chat"]
    assert_refused(capsys, in_a_chat, "style: 'chat'", "no chat template", folder=tmp_path)
    for command in (["show", "77"], ["export", "77", "--to", "copy"], ["ask", "77", "Who?"]):
        assert_refused(capsys, command, "has no trial 77", "trials are 0 to 3", folder=tmp_path)
    assert run_application(["export", best, "--to", "copy"]) == 0
    assert (tmp_path / "copy/adapter_model.safetensors").is_file()
    capsys.readouterr()
    assert_refused(capsys, ["export", best, "--to", "copy"], "exists already", folder=tmp_path)

    # The exported adapter is measured as any other.
    code, measured = run_json(capsys, "measure", "facts.csv", "--adapter", "copy")
    assert code == 0
    member = max(
        (m for m in continued["front"] if str(m["trial"]) == best), key=lambda m: m["epoch"]
    )
    assert measured["recall"] == member["recall"]
    assert measured["knowledge_loss"] == member["knowledge_loss"]
    code, shown = run_json(
        capsys, "measure", "facts.csv", "--adapter", "copy", "--presets", "greedy, simple-1"
    )
    assert code == 0
    names = [each["sampling"]["name"] for each in shown["samplings"]]
    assert names == ["greedy", "simple-1", "simple-1, no penalty"]
    assert shown["samplings"][0]["recall"]["value"] == member["recall"]
    assert run_application(["measure", "--trial", best, "--presets", "StarChat"]) == 0
    assert "StarChat" in capsys.readouterr().out
    for presets, message in (
        ("simpel-1", "did you mean 'simple-1'?"),
        ("Mirostat,later,min_p", ""),
    ):
        assert_refused(
            capsys,
            ["measure", "--adapter", "copy", "--presets", presets],
            message or "'min_p' is listed twice",
            folder=tmp_path,
        )


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_saves_the_running_trials_for_the_next_time(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    with monkeypatch.context() as interrupted:
        interrupted.setattr(LiveView, "stepped", send_at_step(3, number))
        assert run_application(["run", *files]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert "every running trial is saved; run the same command again to go on" in output.err
    assert "Traceback" not in output.err
    checkpoints = tmp_path / "runs/tiny/checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["trial-0000", "trial-0001"]
    assert run_application(["run", *files]) in (0, 3)
    said = capsys.readouterr().err
    assert "trial 0 goes on from where it was interrupted" in said
    assert not any(checkpoints.iterdir())


def send_at_step(step: int, number: signal.Signals) -> Callable[..., None]:
    """Return a watcher's method that sends this process a signal when called the n-th time."""
    calls = iter(range(1, 10_000))

    def stepped(*_: object) -> None:
        if next(calls) == step:
            os.kill(os.getpid(), number)

    return stepped
