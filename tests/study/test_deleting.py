"""`remember delete` asks first, spares studies at work, and leaves nothing behind."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from sqlalchemy import MetaData, func, select

from storage.database import StudyStorage, open_storage
from storage.deletion import delete_study
from storage.reader import list_studies
from storage.recorder import Recorder
from study.commands.application import run_application
from study.presence import Presence
from tests.study.dashboard_study import NAME, build_study


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
    """Return the database of the study, with another one in it."""
    place = build_study(Path("runs"))
    (place.adapters / "trial-0000-epoch-0004").mkdir(parents=True)
    Path("runs/second").mkdir()
    with closing(open_storage("sqlite:///runs/remember.db")) as opened:
        Recorder(opened, "second").create_study_record(config="", fingerprint={}, slots=1, seed=0)
        optuna.create_study(study_name="second", storage=opened)
        yield opened


def count_rows(storage: StudyStorage) -> dict[str, int]:
    """Return how many rows every table of the database has, Optuna's and ours."""
    tables = MetaData()
    tables.reflect(storage.engine)
    with storage.begin_read() as session:
        return {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in tables.tables.items()
        }


def names(storage: StudyStorage) -> tuple[list[str], list[str]]:
    """Return the studies that we know, and those that Optuna knows."""
    theirs = optuna.get_all_study_summaries(storage)
    return [s.name for s in list_studies(storage)], sorted(s.study_name for s in theirs)


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


BOTH = (["second", NAME], ["second", NAME])


@pytest.mark.parametrize("said", ["n\n", "\n", ""])
def test_without_a_yes_all_stays(
    storage: StudyStorage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
) -> None:
    before = count_rows(storage)
    answer(monkeypatch, said)
    assert run_application(["delete", "--name", NAME]) == 1
    output = capsys.readouterr()
    assert f"Delete study {NAME} and the folder runs/{NAME}?" in output.err
    assert "deleted" not in output.out
    assert count_rows(storage) == before
    assert Path("runs", NAME, "adapters", "trial-0000-epoch-0004").is_dir()


def test_a_yes_removes_its_rows_and_its_folder_and_no_others(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "y\n")
    assert run_application(["delete", "--name", NAME]) == 0
    assert capsys.readouterr().out.strip().splitlines() == [
        f"deleted: study {NAME}",
        f"deleted: folder runs/{NAME}",
    ]
    assert names(storage) == (["second"], ["second"])
    assert not Path("runs", NAME).exists()
    assert Path("runs/second").is_dir()


def test_no_row_of_any_table_is_left(storage: StudyStorage) -> None:
    assert run_application(["delete", "--name", NAME, "--yes"]) == 0
    left = {name: count for name, count in count_rows(storage).items() if count}
    assert run_application(["delete", "--name", "second", "--yes"]) == 0
    versions = {"alembic_version", "version_info", "remember_schema", "remember_alembic_version"}
    assert {name for name, count in count_rows(storage).items() if count} == versions
    # Before that only the other study's: its own row, Optuna's, and that of its direction.
    assert left.keys() - versions == {"remember_studies", "studies", "study_directions"}


def test_a_study_that_workers_are_at_stays(
    storage: StudyStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    with Presence(storage, Recorder(storage, NAME), NAME, device="cpu", slots=1) as presence:
        assert run_application(["delete", "--name", NAME, "--yes"]) == 2
        host, process, _ = presence.owner.rsplit(":", 2)
        assert (
            f"name: workers are at study '{NAME}' ({host}:{process}); stop them first"
            in capsys.readouterr().err
        )
        assert names(storage) == BOTH
        assert Path("runs", NAME).is_dir()
        assert run_application(["delete", "--name", "second", "--yes"]) == 0
    assert run_application(["delete", "--name", NAME, "--yes"]) == 0


def test_a_worker_that_comes_while_the_person_thinks_keeps_the_study(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[int] = []

    def think(*_: object, **__: object) -> bool:
        recorder = Recorder(storage, NAME)
        came.append(recorder.begin_sitting(owner="elsewhere:1:boot", device="cpu"))
        return True

    monkeypatch.setattr("study.commands.deleting.typer.confirm", think)
    assert run_application(["delete", "--name", NAME]) == 2
    assert len(came) == 1
    assert names(storage) == BOTH


def test_an_unknown_name_is_explained_before_anything_is_asked(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "y\n")
    assert run_application(["delete", "--name", "shwon"]) == 2
    said = capsys.readouterr().err
    assert "there is no study called 'shwon' to delete; there are: second, shown" in said
    assert "Delete study" not in said
    assert names(storage) == BOTH


def test_a_study_is_deleted_by_its_name_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_application(["delete", "--yes"]) == 2
    assert "name: a study is deleted by its --name" in capsys.readouterr().err
    assert run_application(["delete", "--name", "../escape", "--yes"]) == 2
    assert "name: '../escape' is not allowed" in capsys.readouterr().err
    assert run_application(["delete", "--name", "tiny", "--yes"]) == 2
    assert "there is no database at sqlite:///runs/remember.db" in capsys.readouterr().err


def test_a_deletion_that_was_cut_short_is_finished(storage: StudyStorage) -> None:
    class Gone(Exception):
        pass

    class CutShort(StudyStorage):
        def delete_study(self, study_id: int) -> None:
            raise Gone

    with (
        closing(CutShort("sqlite:///runs/remember.db")) as half,
        pytest.raises(Gone),
    ):
        delete_study(half, NAME)
    assert names(storage) == (["second"], ["second", NAME])
    assert run_application(["delete", "--name", NAME, "--yes"]) == 0
    assert names(storage) == (["second"], ["second"])


def test_a_folder_that_cannot_be_removed_is_told(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("study.commands.deleting.shutil.rmtree", refuse)
    assert run_application(["delete", "--name", NAME, "--yes"]) == 2
    output = capsys.readouterr()
    assert f"out: runs/{NAME} cannot be removed whole" in output.err
    assert "remove the rest by hand" in " ".join(output.err.split())
    assert f"folder runs/{NAME}" not in output.out
    assert names(storage) == (["second"], ["second"])
