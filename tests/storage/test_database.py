"""Opening a database: its tables, its transactions, several processes at once, and bad input."""

from __future__ import annotations

import json
import os
import pickle
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from sqlalchemy import Dialect, inspect, make_url, text
from sqlalchemy.dialects import registry
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.schema import CreateTable

from storage.database import StorageError, StudyStorage, holds_studies, open_storage
from storage.tables import Row, database_seconds
from tests.storage.postgresql_server import fresh_database

DIALECTS = [
    make_url(f"{name}://").get_dialect()()
    for name in ("postgresql+psycopg", "mysql", "mssql", "oracle")
]


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
        list(
            zip(
                DIALECTS,
                ["clock_timestamp", "NOW(6)", "SYSUTCDATETIME", "SYSTIMESTAMP"],
                strict=True,
            )
        ),
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


class TestSeveralProcesses:
    def race(self, urls: list[str], folder: Path) -> None:
        """Let four processes claim trials in each of these empty databases, all at once."""
        (folder / "ready").mkdir()
        script = Path(__file__).with_name("claim_trials.py")
        command = [sys.executable, str(script), str(folder / "ready")]
        workers = [
            subprocess.Popen(
                [*command, "4", *urls],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        outputs = [worker.communicate()[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0, 0, 0]
        for results in zip(
            *(map(json.loads, output.splitlines()) for output in outputs), strict=True
        ):
            for what in ("popped", "claimed"):
                assert sorted(n for result in results for n in result[what]) == list(range(40))
        assert [len(output.splitlines()) for output in outputs] == [len(urls)] * 4

    def test_four_on_an_empty_file_share_its_trials_without_a_duplicate(
        self, tmp_path: Path
    ) -> None:
        self.race([f"sqlite:///{tmp_path}/{n}.db" for n in range(2)], tmp_path)

    def test_four_on_an_empty_server_share_its_trials_without_a_duplicate(
        self, server_url: str, tmp_path: Path
    ) -> None:
        self.race([fresh_database(server_url) for _ in range(2)], tmp_path)

    @pytest.mark.slow
    def test_four_start_twenty_times_on_empty_files(self, tmp_path: Path) -> None:
        self.race([f"sqlite:///{tmp_path}/{n}.db" for n in range(20)], tmp_path)

    @pytest.mark.slow
    def test_four_start_twenty_times_on_empty_databases_of_a_server(
        self, server_url: str, tmp_path: Path
    ) -> None:
        self.race([fresh_database(server_url) for _ in range(20)], tmp_path)


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

    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
    def test_a_missing_psycopg_is_told_how_to_be_installed(
        self, scheme: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        remedy = re.escape('pip install "remember-me[postgresql]"')
        for use in (open_storage, holds_studies):
            with pytest.raises(StorageError, match=rf"missing \(.*psycopg.*\); {remedy}"):
                use(f"{scheme}://ada:secret@host/study")

    def test_a_server_that_cannot_be_reached_is_named_without_waiting_for_it(self) -> None:
        url = "postgresql://ada:secret@localhost:1/study"
        with pytest.raises(StorageError, match=r"localhost:1/study cannot be opened: conn.*"):
            open_storage(url)

    def test_a_kind_of_database_whose_clock_is_unknown_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(DefaultDialect, "name", "acme")
        monkeypatch.setattr(registry, "impls", {**registry.impls, "acme": lambda: DefaultDialect})
        with pytest.raises(StorageError, match="how to ask acme for the time is not known"):
            open_storage("acme://host/study")

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
