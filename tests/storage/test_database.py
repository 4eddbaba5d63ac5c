"""Opening a database: its tables, its transactions, several processes at once, and bad input."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from sqlalchemy import Dialect, inspect, make_url, text
from sqlalchemy.schema import CreateTable

from storage.database import (
    REMEMBER_SCHEMA_VERSION,
    StorageError,
    StudyStorage,
    open_storage,
    show_url,
    sqlite_file,
)
from storage.tables import Row, database_seconds

DIALECTS = [make_url(f"{name}://").get_dialect()() for name in ("postgresql", "mysql")]


def copy_by_pickle(storage: StudyStorage) -> StudyStorage:
    copy = pickle.loads(pickle.dumps(storage))
    assert isinstance(copy, StudyStorage)
    return copy


class TestTables:
    def test_ours_stand_beside_those_of_optuna(self, storage: StudyStorage) -> None:
        names = set(inspect(storage.engine).get_table_names())
        assert {"studies", "trials", "remember_studies", "remember_trials"} <= names

    def test_opening_again_finds_them(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/study.db"
        first = open_storage(url)
        optuna.create_study(study_name="kept", storage=first)
        first.close()
        second = open_storage(url)
        assert [study.study_name for study in optuna.get_all_study_summaries(second)] == ["kept"]
        second.close()

    def test_they_join_a_database_that_optuna_made(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/study.db"
        optuna.storages.RDBStorage(url).engine.dispose()
        storage = open_storage(url)
        assert inspect(storage.engine).has_table("remember_leases")
        storage.close()

    def test_a_path_may_hold_braces(self, tmp_path: Path) -> None:
        open_storage(f"sqlite:///{tmp_path}/{{name}}.db").close()
        assert (tmp_path / "{name}.db").is_file()

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_every_table_can_be_written_for_a_server(self, dialect: Dialect) -> None:
        for table in Row.metadata.sorted_tables:
            assert table.name in str(CreateTable(table).compile(dialect=dialect))

    @pytest.mark.parametrize(
        ("dialect", "function"),
        list(zip(DIALECTS, ["clock_timestamp", "NOW(6)"], strict=True)),
    )
    def test_time_is_that_of_the_server(self, dialect: Dialect, function: str) -> None:
        assert function in str(database_seconds().compile(dialect=dialect))


class TestSqlite:
    @pytest.fixture
    def storage(self, tmp_path: Path) -> StudyStorage:
        return open_storage(f"sqlite:///{tmp_path}/study.db")

    @pytest.mark.parametrize("is_copy", [False, True])
    def test_connections_keep_a_write_ahead_log_and_wait_a_minute(
        self, storage: StudyStorage, is_copy: bool
    ) -> None:
        used = copy_by_pickle(storage) if is_copy else storage
        with used.engine.connect() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
            assert connection.scalar(text("PRAGMA busy_timeout")) == 60_000
            assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        used.close()
        storage.close()

    @pytest.mark.parametrize("is_copy", [False, True])
    def test_a_transaction_holds_the_write_lock_before_it_writes(
        self, storage: StudyStorage, tmp_path: Path, is_copy: bool
    ) -> None:
        used = copy_by_pickle(storage) if is_copy else storage
        with (
            closing(sqlite3.connect(tmp_path / "study.db", timeout=0)) as other,
            used.begin_write() as session,
        ):
            session.execute(text("SELECT 1"))
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
        used.close()
        storage.close()

    def test_a_reading_transaction_keeps_no_writer_waiting(
        self, storage: StudyStorage, tmp_path: Path
    ) -> None:
        with (
            closing(sqlite3.connect(tmp_path / "study.db", timeout=0)) as other,
            storage.begin_read() as session,
        ):
            session.execute(text("SELECT * FROM remember_studies"))
            other.execute("BEGIN IMMEDIATE")
        storage.close()


class TestUrls:
    def test_they_are_shown_without_passwords(self) -> None:
        assert show_url("mysql://ada:secret@host/study?x=y") == "mysql://ada:***@host/study"

    def test_only_those_of_sqlite_name_a_file(self) -> None:
        assert sqlite_file("sqlite:///runs/study.db") == Path("runs/study.db")
        assert sqlite_file("sqlite://") is None
        assert sqlite_file("mysql://host/study") is None


class TestSeveralProcesses:
    def test_four_on_an_empty_database_share_its_trials_without_a_duplicate(
        self, tmp_path: Path
    ) -> None:
        script = Path(__file__).with_name("claim_trials.py")
        (tmp_path / "ready").mkdir()
        workers = [
            subprocess.Popen(
                [sys.executable, script, f"sqlite:///{tmp_path}/s.db", tmp_path / "ready", "4"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        outputs = [worker.communicate()[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0, 0, 0]
        results = [json.loads(output) for output in outputs]
        for what in ("popped", "claimed"):
            assert sorted(n for result in results for n in result[what]) == list(range(40))


class TestBadInput:
    def test_a_file_that_is_no_database_is_named_and_left_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "facts.csv"
        path.write_text("question,answer\nWho won?,Nobody\n")
        with pytest.raises(StorageError, match=r"facts\.csv is not a SQLite database"):
            open_storage(f"sqlite:///{path}")
        assert path.read_text() == "question,answer\nWho won?,Nobody\n"
        assert [entry.name for entry in tmp_path.iterdir()] == ["facts.csv"]

    def test_a_damaged_database_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        path.write_bytes(b"SQLite format 3\x00" + b"damage" * 1000)
        with pytest.raises(StorageError, match=r"study\.db cannot be opened: file is not a"):
            open_storage(f"sqlite:///{path}")

    def test_a_missing_folder_is_named_and_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"the folder .*/runs of .* does not exist"):
            open_storage(f"sqlite:///{tmp_path}/runs/study.db")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_instead_of_a_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="is a folder; name a file in it"):
            open_storage(f"sqlite:///{tmp_path}")

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
    )
    def test_a_folder_without_permission_to_write_is_named(self, tmp_path: Path) -> None:
        folder = tmp_path / "runs"
        folder.mkdir(mode=0o500)
        with pytest.raises(StorageError, match="runs is not writable"):
            open_storage(f"sqlite:///{folder}/study.db")

    @pytest.mark.parametrize(
        "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true"]
    )
    def test_a_database_that_ends_with_the_process_is_refused(self, url: str) -> None:
        with pytest.raises(StorageError, match="names no file; write sqlite:///PATH"):
            open_storage(url)

    def test_a_plain_path_is_told_how_a_url_looks(self) -> None:
        with pytest.raises(StorageError, match="for a file write sqlite:///PATH"):
            open_storage("runs/study.db")

    def test_an_unknown_kind_of_database_is_told_the_known_ones(self) -> None:
        with pytest.raises(StorageError, match=r"'redis' is not .* one of sqlite, postgresql"):
            open_storage("redis://host/0")

    def test_a_missing_driver_is_named(self) -> None:
        with pytest.raises(StorageError, match=r"needs a driver that is missing .*pg8000"):
            open_storage("postgresql+pg8000://host/study")

    def test_an_unknown_driver_is_named(self) -> None:
        with pytest.raises(StorageError, match=r"cannot be opened: .*nonsense"):
            open_storage("sqlite+nonsense:///study.db")

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql+pg8000://ada:secret@host/study",
            "postgresql+pg8000://host/study?user=ada&password=secret",
            "postgresql://ada:secret@host:port/study",
            "redis://ada:secret@host/0",
        ],
    )
    def test_no_message_shows_a_password(self, url: str) -> None:
        with pytest.raises(StorageError) as caught:
            open_storage(url)
        assert "secret" not in str(caught.value)

    def test_tables_of_another_optuna_are_refused_with_the_remedy(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/study.db"
        for version, remedy in [("v2.6.0.a", "storage upgrade"), ("v99.0.0.a", "newer Optuna")]:
            open_storage(url).close()
            with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
                connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
                connection.commit()
            with pytest.raises(StorageError, match=remedy):
                open_storage(url)
            with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
                connection.execute("UPDATE alembic_version SET version_num = 'v3.2.0.a'")
                connection.commit()

    def test_tables_of_a_newer_remember_are_refused(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/study.db"
        open_storage(url).close()
        with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
            connection.execute("UPDATE remember_schema SET version = 99")
            connection.commit()
        known = f"this one knows {REMEMBER_SCHEMA_VERSION}"
        with pytest.raises(StorageError, match=rf"newer remember-me \(schema 99, {known}\)"):
            open_storage(url)

    def test_tables_of_an_older_remember_are_completed(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/study.db"
        open_storage(url).close()
        with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
            connection.execute("UPDATE remember_schema SET version = 1")
            connection.execute("DROP TABLE remember_floors")
            connection.commit()
        open_storage(url).close()
        with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
            versions = connection.execute("SELECT version FROM remember_schema").fetchall()
            floors = connection.execute("SELECT * FROM remember_floors").fetchall()
        assert (versions, floors) == ([(REMEMBER_SCHEMA_VERSION,)], [])
