"""Our tables come to this program's version from every earlier one, and from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.pool import NullPool

from storage import migrating
from storage.database import StorageError, holds_studies, open_storage
from storage.migrating import REMEMBER_SCHEMA_VERSION, VERSION_TABLE, revision_of
from storage.reader import read_leases, read_sittings, read_study
from storage.records import SittingRecord
from storage.tables import Row

OLD_ROWS = """
INSERT INTO remember_studies VALUES ('oscars', 'trials = 40', '{"facts": "f1"}', 8, 7, 1000.5);
INSERT INTO remember_leases VALUES ('oscars', 3, NULL, 2, 2000.5);
INSERT INTO remember_sittings VALUES (5, 'oscars', 'elsewhere:1:boot', 'cpu', 1001.5, 1002.5);
"""


def connect_to(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool)


def execute(url: str, script: str) -> None:
    with connect_to(url).begin() as connection:
        for statement in filter(str.strip, script.split(";\n")):
            connection.execute(text(statement))


def scalar(url: str, query: str) -> object:
    with connect_to(url).connect() as connection:
        return connection.scalar(text(query))


def write_old_tables(url: str, version: int) -> None:
    kind = connect_to(url).dialect.name
    folder = Path(__file__).with_name("old_schemas")
    schema = (folder / f"version_{version}_{kind}.sql").read_text(encoding="utf-8")
    execute(url, schema + OLD_ROWS)
    execute(url, f"INSERT INTO remember_schema VALUES (1, {version})")


def differences(url: str) -> list[object]:
    """Return what Alembic would change to make our tables those of the models."""
    with connect_to(url).connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: (
                    kind != "table" or str(name).startswith("remember_")
                ),
            },
        )
        return list(compare_metadata(context, Row.metadata))


def test_the_known_version_is_that_of_the_last_revision() -> None:
    folder = str(Path(migrating.__file__).with_name("migrations"))
    config = Config()
    config.set_main_option("script_location", folder)
    script = ScriptDirectory.from_config(config)
    assert script.get_current_head() == revision_of(REMEMBER_SCHEMA_VERSION)
    assert len(list(script.walk_revisions())) == REMEMBER_SCHEMA_VERSION


def test_an_empty_database_gets_the_tables_of_the_models(empty_url: str) -> None:
    open_storage(empty_url).close()
    assert differences(empty_url) == []
    assert scalar(empty_url, f"SELECT version_num FROM {VERSION_TABLE}") == "0004"
    assert scalar(empty_url, "SELECT version_num FROM alembic_version") != "0004"
    assert holds_studies(empty_url)


def test_a_difference_would_be_seen(empty_url: str) -> None:
    open_storage(empty_url).close()
    execute(empty_url, "ALTER TABLE remember_sittings DROP COLUMN token")
    assert len(differences(empty_url)) == 1


@pytest.mark.parametrize("version", [1, 2])
def test_tables_from_before_alembic_keep_their_rows_and_become_those_of_the_models(
    empty_url: str, version: int
) -> None:
    write_old_tables(empty_url, version)
    for _ in range(2):  # opening again changes nothing
        storage = open_storage(empty_url)
        assert differences(empty_url) == []
        assert read_study(storage, "oscars").seed == 7
        assert read_sittings(storage, "oscars") == (
            SittingRecord(
                id=5,
                owner="elsewhere:1:boot",
                device="cpu",
                slots=0,
                began_at_seconds=1001.5,
                seen_at_seconds=1002.5,
            ),
        )
        assert [lease.fence for lease in read_leases(storage, "oscars")] == [2]
        storage.close()


def test_what_a_revision_that_was_cut_short_left_is_completed(empty_url: str) -> None:
    write_old_tables(empty_url, 2)
    execute(
        empty_url,
        f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) PRIMARY KEY);\n"
        f"INSERT INTO {VERSION_TABLE} VALUES ('0002');\n"
        "ALTER TABLE remember_sittings ADD COLUMN slots INTEGER NOT NULL DEFAULT 0",
    )
    open_storage(empty_url).close()
    assert differences(empty_url) == []


def test_a_program_from_before_alembic_is_told_to_stay_away(empty_url: str) -> None:
    open_storage(empty_url).close()
    assert scalar(empty_url, "SELECT version FROM remember_schema") == 3  # it knew 2


def test_tables_of_a_newer_program_are_refused_and_left_alone(empty_url: str) -> None:
    open_storage(empty_url).close()
    execute(empty_url, f"UPDATE {VERSION_TABLE} SET version_num = '0099'")
    with pytest.raises(
        StorageError, match=r"newer remember-me \(schema 99, this one knows 4\); install the newer"
    ):
        open_storage(empty_url)
    assert scalar(empty_url, f"SELECT version_num FROM {VERSION_TABLE}") == "0099"


def test_a_newer_version_from_before_alembic_is_refused(empty_url: str) -> None:
    write_old_tables(empty_url, 2)
    execute(empty_url, "UPDATE remember_schema SET version = 99")
    with pytest.raises(StorageError, match=r"newer remember-me \(schema 99, this one knows 4\)"):
        open_storage(empty_url)
    assert not inspect(connect_to(empty_url)).has_table(VERSION_TABLE)
