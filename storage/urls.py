"""Reads database URLs: which kind and driver they name, and how they may be shown."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from storage.errors import StorageError

_TESTED_KINDS = ("sqlite", "postgresql", "mysql", "mariadb")


def parse_url(url: str) -> URL:
    """Return a database URL with the driver that it is used with.

    That of PostgreSQL is psycopg 3, unless the URL names another one.

    Raises:
        StorageError: If it is no URL, or no SQL database that this installation knows.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        # The text itself is not repeated: it may hold a password.
        raise StorageError(
            "storage: this is not a database URL; for a file write sqlite:///PATH"
        ) from error
    if parsed.drivername in ("postgres", "postgresql"):  # SQLAlchemy would take psycopg 2
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "postgres":  # the name that libpq takes and SQLAlchemy not
        parsed = parsed.set(drivername=f"postgresql+{parsed.get_driver_name()}")
    kind = parsed.get_backend_name()
    if kind not in _TESTED_KINDS:
        try:
            parsed.get_dialect()
        except NoSuchModuleError as error:
            raise StorageError(
                f"storage: {kind!r} is not a kind of SQL database known here; "
                f"use one of {', '.join(_TESTED_KINDS)}"
            ) from error
    return parsed


def untested_kind(url: str) -> str | None:
    """Return the kind of a URL's database if it may work but is not tested with this program.

    None for the kinds that are.

    Raises:
        StorageError: If it is no URL, or no SQL database that this installation knows.
    """
    kind = parse_url(url).get_backend_name()
    return None if kind in _TESTED_KINDS else kind


def show_url(url: str) -> str:
    """Return a database URL as it may be shown: without its password."""
    return show_parsed_url(parse_url(url))


def show_parsed_url(url: URL) -> str:
    """Return the URL without its password; the query may hold one too and is left out."""
    return url.set(query={}).render_as_string(hide_password=True)


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL, or None for another kind of database."""
    parsed = parse_url(url)
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database
    return Path(str(parsed.database)) if is_file else None
