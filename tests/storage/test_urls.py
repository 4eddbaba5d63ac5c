"""Database URLs: the driver they are used with, and how they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.database import StorageError
from storage.urls import parse_url, show_url, sqlite_file, untested_kind


@pytest.mark.parametrize(
    ("url", "drivername"),
    [
        ("postgresql://host/study", "postgresql+psycopg"),
        ("postgres://host/study", "postgresql+psycopg"),
        ("postgres+pg8000://host/study", "postgresql+pg8000"),
        ("postgresql+psycopg2://host/study", "postgresql+psycopg2"),
        ("mysql://host/study", "mysql"),
        ("sqlite:///study.db", "sqlite"),
    ],
)
def test_postgresql_is_used_through_psycopg_3_unless_another_driver_is_named(
    url: str, drivername: str
) -> None:
    assert parse_url(url).drivername == drivername


def test_a_password_survives_the_choice_of_the_driver() -> None:
    parsed = parse_url("postgresql://ada:p%40ss%2Fword@host/study?sslmode=require")
    assert parsed.password == "p@ss/word"
    again = parse_url(parsed.render_as_string(hide_password=False))
    assert again == parsed


def test_they_are_shown_without_passwords() -> None:
    assert show_url("mysql://ada:secret@host/study?x=y") == "mysql://ada:***@host/study"
    assert show_url("postgres://ada:secret@host/s") == "postgresql+psycopg://ada:***@host/s"


def test_only_those_of_sqlite_name_a_file() -> None:
    assert sqlite_file("sqlite:///runs/study.db") == Path("runs/study.db")
    assert sqlite_file("sqlite://") is None
    assert sqlite_file("mysql://host/study") is None


@pytest.mark.parametrize("url", ["oracle+oracledb://host/study", "mssql+pyodbc://host/study"])
def test_other_sql_databases_are_taken_and_named_as_untested(url: str) -> None:
    assert untested_kind(url) == url.split("+")[0]


@pytest.mark.parametrize("url", ["sqlite:///s.db", "postgres://host/s", "mysql://host/s"])
def test_the_usual_ones_are_not_untested(url: str) -> None:
    assert untested_kind(url) is None


@pytest.mark.parametrize("url", ["redis://host/0", "journal://study.log", "grpc://host:13000"])
def test_what_is_no_sql_database_is_refused(url: str) -> None:
    for use in (parse_url, untested_kind):
        with pytest.raises(StorageError, match="is not a kind of SQL database known here; use on"):
            use(url)
