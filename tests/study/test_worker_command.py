"""`remember worker` joins a study that is there, as it was made, and changes nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import MetaData, select

import study
from storage.database import StudyStorage, open_storage
from storage.reader import read_sittings, read_study
from storage.recorder import Recorder
from study.commands.application import run_application
from study.engine import Post
from study.place import Place
from study.spec import EngineSpec, StartFromSpec, StudySpec
from tests.chaos import chaos_study
from tests.storage.postgresql_server import fresh_database, running_postgresql

REPOSITORY = Path(str(study.__file__)).parents[1]
URL = "sqlite:///runs/remember.db"
TRIALS = 10  # enough that the second worker comes before the last is asked
MADE = StudySpec(
    name="tiny",
    facts="facts.csv",
    trials=3,
    out="runs",
    engine=EngineSpec(device="cpu", threads=2),
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commands run in an empty folder, with no database named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def make_study(made: StudySpec = MADE, *, url: str = URL) -> None:
    """Record a study as `remember run` does before its first trial."""
    if url == URL:
        Path("runs").mkdir()
    with closing(open_storage(url)) as storage:
        Recorder(storage, "tiny").create_study_record(
            config=made.recorded.model_dump_json(), fingerprint={}, slots=1, seed=0
        )


@dataclass(slots=True)
class Joined:
    """What the command asked to be run."""

    spec: StudySpec | None = None
    place: Place | None = None
    post: Post | None = None
    is_finished: bool = True

    def run_study(self, spec: StudySpec, place: Place, *_: object, **named: object) -> bool:
        self.spec, self.place = spec, place
        post = named["post"]
        assert isinstance(post, Post)
        self.post = post
        return self.is_finished


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Joined:
    """Put a study that ends at once in the place of the real one."""
    joined = Joined()
    monkeypatch.setattr("study.commands.worker.run_study", joined.run_study)
    return joined


def test_a_worker_runs_the_study_as_it_was_made(
    joined: Joined, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study()
    assert run_application(["worker", "--name", "tiny"]) == 0
    assert joined.spec == MADE.model_copy(update={"storage": URL})
    assert joined.place == Place(name="tiny", folder=Path("runs/tiny"), storage_url=URL)
    assert joined.post == Post(engine=MADE.engine, joined=MADE)
    assert "nothing is left to do" in capsys.readouterr().err


def test_what_is_its_own_is_not_the_studys(joined: Joined) -> None:
    make_study()
    own = ["--device", "cuda:1", "--threads", "7", "--model", "/models/small", "--out", "runs"]
    assert run_application(["worker", "--name", "tiny", *own]) == 0
    assert joined.spec is not None
    assert joined.post is not None
    assert joined.spec.model == "/models/small"
    assert joined.post.engine == EngineSpec(device="cuda:1", threads=7)
    assert joined.post.joined == MADE


def test_the_database_of_the_environment_goes_with_a_folder_elsewhere(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///shared.db")
    make_study(url="sqlite:///shared.db")
    assert run_application(["worker", "--name", "tiny"]) == 0
    assert joined.place == Place(
        name="tiny", folder=Path("runs/tiny"), storage_url="sqlite:///shared.db"
    )
    assert run_application(["worker", "--name", "tiny", "--out", "elsewhere"]) == 0
    assert joined.place is not None
    assert joined.place.folder == Path("elsewhere/tiny")
    assert joined.post is not None
    assert joined.post.joined == MADE  # whose folder is still its own


def test_another_study_to_start_from_is_not_looked_for_again(joined: Joined) -> None:
    other = StartFromSpec(study="older", storage="postgresql://ada:secret@host/studies")
    make_study(MADE.model_copy(update={"start_from": other}))
    assert run_application(["worker", "--name", "tiny"]) == 0
    assert joined.spec is not None
    assert joined.post is not None
    assert joined.post.joined is not None
    assert joined.spec.start_from is not None  # it may be the first to ask
    begin_trial()
    assert run_application(["worker", "--name", "tiny"]) == 0
    assert joined.spec.start_from is None
    assert joined.post.joined.start_from == StartFromSpec(study="older")


def begin_trial() -> None:
    with closing(open_storage(URL)) as storage, storage.begin_write() as session, session.begin():
        tables = MetaData()
        tables.reflect(storage.engine)
        session.execute(
            tables.tables["remember_trials"]
            .insert()
            .values(
                study="tiny",
                number=0,
                asked_index=0,
                recipe='{"epochs": 4, "rank": 4, "alpha": 8, "cutoff": 96, "warmup_steps": 0, '
                '"learning_rate": 0.001}',
                sampling='{"name": "greedy", "do_sample": false}',
                seed=1,
                state="running",
            )
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name: a worker joins a study by its --name; name it"),
        (
            ["--name", "tyni"],
            f"name: there is no study called 'tyni' at {URL}; start it with `remember run`",
        ),
        (["--name", "../tiny"], "name: '../tiny' is not allowed"),
        (["--name", "tiny", "--device", "gpu"], "engine.device: 'gpu' is not allowed"),
        (["--name", "tiny", "--threads", "0"], "engine.threads: 0 is not allowed"),
        (["--name", "tiny", "--storage", "nonsense"], "not a database URL"),
    ],
)
def test_what_cannot_be_joined_is_explained(
    joined: Joined, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    make_study()
    assert run_application(["worker", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert joined.spec is None


def test_without_a_database_nothing_is_made(
    joined: Joined, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_application(["worker", "--name", "tiny"]) == 2
    assert "there is no study called 'tiny'" in capsys.readouterr().err
    assert joined.spec is None
    assert not Path("runs").exists()


def test_a_worker_that_was_stopped_says_that_all_is_saved(
    joined: Joined, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study()
    joined.is_finished = False
    assert run_application(["worker", "--name", "tiny"]) == 1
    assert "every running trial is saved" in capsys.readouterr().err


def test_no_address_of_a_database_is_recorded() -> None:
    secret = "postgresql://ada:secret@host/studies"
    spec = MADE.model_copy(
        update={"storage": secret, "start_from": StartFromSpec(study="older", storage=secret)}
    )
    assert "secret" not in spec.recorded.model_dump_json()
    assert spec.recorded.start_from == StartFromSpec(study="older")
    assert spec.storage == secret


def start_worker(folder: Path, url: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPTUNA_STORAGE": url}
    environment["PYTHONPATH"] = str(REPOSITORY)
    with (folder / "worker.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "study", "worker", "--name", chaos_study.NAME, *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
        )


def wait_until(is_so: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, chaos_study.said(folder)
        time.sleep(0.2)


def all_rows(storage: StudyStorage) -> str:
    """Return everything that a database holds, as text."""
    tables = MetaData()
    tables.reflect(storage.engine)
    with storage.begin_read() as session:
        return "\n".join(
            f"{name}: {row}"
            for name, table in tables.tables.items()
            for row in session.execute(select(table))
        )


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that others use as well
def test_a_worker_joins_a_running_study_and_no_password_is_kept(tmp_path: Path) -> None:
    with running_postgresql() as server:
        url = fresh_database(server)
        secret = url.replace("postgres:@", "postgres:secret@")
        chaos_study.write_study(tmp_path, trials=TRIALS)
        file = tmp_path / "study.toml"
        text = file.read_text(encoding="utf-8").replace("[30, 60, 90]", "[20, 30]")
        file.write_text(text, encoding="utf-8")
        first = chaos_study.start(tmp_path, url=secret)
        second = None
        try:
            wait_until(lambda: bool((r := chaos_study.read_if_there(url)) and r.trials), tmp_path)
            config = chaos_study.read(url).config
            second = start_worker(tmp_path, secret, "--out", "elsewhere")
            codes = [first.wait(timeout=240), second.wait(timeout=240)]
        finally:
            for process in (first, second):
                if process is not None:
                    process.kill()
        assert set(codes) <= {0, 3}, chaos_study.said(tmp_path)
        chaos_study.check_books(url, trials=TRIALS)
        with closing(open_storage(url)) as storage:
            record, sittings = (
                read_study(storage, chaos_study.NAME),
                read_sittings(storage, chaos_study.NAME),
            )
            rows = all_rows(storage)
        assert record.config == config
        assert StudySpec.model_validate_json(config).out == "runs"
        assert len({sitting.owner for sitting in sittings}) == 2
        assert all(sitting.state and sitting.state.trained_tokens > 0 for sitting in sittings)
        assert (tmp_path / "elsewhere" / chaos_study.NAME).is_dir()
        assert "Best Gardener" in rows
        assert "secret" not in rows
        assert "secret" not in chaos_study.said(tmp_path)
        files = (path for path in tmp_path.rglob("*") if path.is_file())
        assert not [path for path in files if b"secret" in path.read_bytes()]
