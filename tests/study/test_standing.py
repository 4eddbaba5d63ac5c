"""How a study stands, as `remember status` and its --watch tell it from outside."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

import study
from data.recipes import GREEDY, Recipe
from storage.database import StudyNotFound, StudyStorage, open_storage
from storage.recorder import Recorder
from study.commands.application import run_application
from study.crew_view import CrewView
from study.place import Place
from study.presence import Presence
from study.standing import Onlooker, standing_in
from tests.study.dashboard_study import NAME, build_study

REPOSITORY = Path(str(study.__file__)).parents[1]
URL = "sqlite:///runs/remember.db"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commands run in an empty folder, with no database named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def storage() -> Iterator[StudyStorage]:
    """Return the database of a study of which four trials have ended and one runs."""
    build_study(Path("runs"))
    with closing(open_storage(URL)) as opened:
        yield opened


def place(name: str = NAME, url: str = URL) -> Place:
    return Place(name=name, folder=Path("runs") / name, storage_url=url)


def begin_trial(storage: StudyStorage, presence: Presence, number: int) -> None:
    lease = presence.acquire(number)
    assert lease is not None
    recipe = Recipe(epochs=4, rank=4, alpha=8, cutoff=96, warmup_steps=0, learning_rate=1e-3)
    Recorder(storage, NAME).record_trial_started(
        lease, asked_index=number, recipe=recipe, sampling=GREEDY, seed=1
    )


def test_a_study_stands_with_its_total_its_best_and_who_is_there(storage: StudyStorage) -> None:
    alone = standing_in(storage, NAME)
    assert alone.counts == {"complete": 2, "pruned": 1, "failed": 1, "running": 1}
    assert (alone.total, alone.workers) == (40, ())
    assert alone.best is not None
    assert (alone.best.trial, alone.best.epoch) == (0, 4)
    with Presence(storage, Recorder(storage, NAME), NAME, device="cpu", slots=3) as presence:
        begin_trial(storage, presence, 5)
        (worker,) = standing_in(storage, NAME).workers
        assert (worker.owner, worker.trials, worker.slots) == (presence.owner, (5,), 3)
    assert standing_in(storage, NAME).workers == ()


def test_a_study_that_is_not_there_has_no_standing(storage: StudyStorage) -> None:
    with pytest.raises(StudyNotFound, match="there are: shown"):
        standing_in(storage, "shwon")


def test_an_onlooker_waits_for_database_study_and_trials() -> None:
    with closing(Onlooker(place())) as onlooker:
        assert onlooker.look() is None
        assert not onlooker.sees_trials()
        assert not Path("runs").exists()
        Path("runs").mkdir()
        with closing(open_storage(URL)) as storage:
            assert onlooker.look() is None
            Recorder(storage, NAME).create_study_record(
                config="{}", fingerprint={}, slots=1, seed=0
            )
            status = onlooker.look()
            assert status is not None
            assert status.ended == 0
            assert not onlooker.sees_trials()
            with Presence(storage, Recorder(storage, NAME), NAME, device="x", slots=1) as there:
                begin_trial(storage, there, 0)
                assert onlooker.sees_trials()


def test_an_onlooker_sees_nothing_while_the_database_is_away() -> None:
    Path("notes.txt").write_text("no database", encoding="utf-8")
    with closing(Onlooker(place(url="sqlite:///notes.txt"))) as onlooker:
        assert onlooker.look() is None
    away = place(url="postgresql+psycopg://ada:secret@localhost:1/studies")
    with closing(Onlooker(away)) as onlooker:
        began = time.monotonic()
        assert onlooker.look() is None
        assert time.monotonic() - began < 15


def status(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_application(["status", *arguments])
    output = capsys.readouterr()
    return code, " ".join(output.out.split()), " ".join(output.err.split())


@pytest.mark.usefixtures("storage")
def test_status_of_a_named_study_tells_how_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = status(capsys, "--name", NAME)
    assert code == 0
    assert "shown: 4 of 40 trials ended (2 complete, 1 pruned, 1 failed, 1 running)" in out
    assert "best so far: trial 0 after 4 epochs" in out
    assert out.endswith("no worker is at it")
    code, out, _ = status(capsys)
    assert code == 0
    assert NAME in out
    assert "best so far" not in out


@pytest.mark.usefixtures("storage")
def test_status_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = status(capsys, "--json")
    assert code == 0
    described = json.loads(out)
    assert described["study"] == NAME
    assert described["trials"] == {"complete": 2, "pruned": 1, "failed": 1, "measured": 5}


@pytest.mark.usefixtures("storage")
def test_a_name_that_is_not_there_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--json"], ["--watch"]):
        code, _, err = status(capsys, "--name", "shwon", *more)
        assert code == 2
        assert "there is none called 'shwon'; there are: shown" in err


@pytest.mark.usefixtures("storage")
def test_watching_a_study_that_nobody_is_at_tells_once_and_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = status(capsys, "--watch")
    assert code == 0
    assert out.count("shown: 4 of 40 trials ended") == 1
    assert out.endswith("no worker is at it")


def test_another_process_watches_until_the_worker_leaves(storage: StudyStorage) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with Presence(
        storage, Recorder(storage, NAME), NAME, device="cpu", slots=2, lease_seconds=8
    ) as presence:
        begin_trial(storage, presence, 5)
        presence.tell_activity("asking the test wordings")
        time.sleep(1.5)  # a sign of life comes every second
        watching = subprocess.Popen(
            [sys.executable, "-m", "study", "status", "--watch"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        said = ""
        while "5 (of 2 slots)" not in said:
            line = watching.stdout.readline()
            assert line, watching.stderr and watching.stderr.read()
            said += line
        _, process, _ = presence.owner.rsplit(":", 2)
        assert f":{process}" in said
        assert watching.poll() is None
    rest, errors = watching.communicate(timeout=60)
    assert watching.returncode == 0, errors
    assert "asking the test" in said + rest
    assert rest.rstrip().endswith("no worker is at it")


@pytest.mark.usefixtures("storage")
def test_a_crew_draws_its_table_on_a_terminal_only() -> None:
    for is_terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=120)
        with closing(Onlooker(place())) as onlooker, CrewView(console, onlooker) as view:
            view.say("worker 1: [bold]asking[/bold]")
            view.look()
        assert "worker 1: [bold]asking[/bold]" in file.getvalue()
        assert ("4 of 40 trials ended" in file.getvalue()) == is_terminal
