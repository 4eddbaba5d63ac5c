"""Opens the database of a study: Optuna's storage with our tables beside it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from storage.tables import Row, SchemaRow

# Raised with every change to our tables; a database of a newer version is refused.
REMEMBER_SCHEMA_VERSION = 2

_BUSY_TIMEOUT_SECONDS = 60
_SQLITE_HEADER = b"SQLite format 3\x00"
_SQLITE_PLUGIN = "remember_sqlite"
# Optuna creates its tables over connections of its own, so that no transaction can guard them.
# These locks belong to the session and end with it, also when its process is killed.
_CREATION_LOCKS = {
    "postgresql": f"SELECT pg_advisory_lock(hashtext('{SchemaRow.__tablename__}'))",
    "mysql": f"SELECT get_lock('{SchemaRow.__tablename__}', {_BUSY_TIMEOUT_SECONDS})",
    "mariadb": f"SELECT get_lock('{SchemaRow.__tablename__}', {_BUSY_TIMEOUT_SECONDS})",
}


class StorageError(RuntimeError):
    """The database cannot be used; the message names it, without its password, and says why."""


class StudyNotFound(StorageError):
    """The database holds no study of the asked name."""


class SqliteTransactions(CreateEnginePlugin):
    """Makes every engine it is named for take SQLite's write lock when a transaction begins.

    Optuna reads a waiting trial and then claims it; with SQLite's default, the lock at the first
    write, two workers claim the same one. A plugin, because RDBStorage makes its engine itself,
    again in every unpickled copy, and uses it before a subclass could reach it.
    """

    def update_url(self, url: URL) -> URL:
        """Return the URL as it is: the plugin is named by an argument, not by the URL."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Attach the event handlers to a new engine."""
        event.listen(engine, "connect", _prepare_sqlite_connection)
        event.listen(engine, "begin", _begin_sqlite_transaction)


plugins.register(_SQLITE_PLUGIN, __name__, SqliteTransactions.__name__)


def _prepare_sqlite_connection(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver leaves BEGIN to us
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite_transaction(connection: Connection) -> None:
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


class StudyStorage(RDBStorage):
    """Optuna's storage; our tables live in the same database and use the same engine."""

    def begin_write(self) -> Session:
        """Return a session for one transaction that writes."""
        return Session(self.engine)

    def begin_read(self) -> Session:
        """Return a session for one transaction that only reads and keeps no writer waiting."""
        return Session(self.engine.execution_options(reads_only=True))

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.remove_session()
        self.engine.dispose()


def open_storage(url: str) -> StudyStorage:
    """Return the storage at a database URL, creating all tables where they are missing.

    Any number of processes may open the same empty database at once.

    Raises:
        StorageError: If the URL, its driver or the database cannot be used, or if the tables were
            made by another version of Optuna or a newer one of this program.
    """
    parsed = _parse_url(url)
    shown = _show_url(parsed)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite:
        _check_sqlite_file(parsed.database, shown)
        engine_options: dict[str, Any] = {
            "plugins": [_SQLITE_PLUGIN],
            "connect_args": {"timeout": _BUSY_TIMEOUT_SECONDS},
        }
    else:
        # A trial may leave its connection idle for an hour; servers and firewalls drop those.
        engine_options = {
            "pool_pre_ping": True,
            # MySQL's default would hide what other workers commit during a transaction.
            "isolation_level": "READ COMMITTED",
            "pool_recycle": 300,
            "pool_size": 2,
            "max_overflow": 2,
        }
    try:
        with _creation_lock(parsed):
            # RDBStorage fills in "{SCHEMA_VERSION}" by str.format, so other braces are doubled.
            template = url.replace("{", "{{").replace("}", "}}")
            if is_sqlite:
                # Optuna prepares an empty database with one transaction inside another, which
                # would wait for itself if both took the write lock.
                RDBStorage(template, skip_compatibility_check=True).engine.dispose()
            # Its versions are checked below, where the message can name the database.
            storage = StudyStorage(template, engine_options, skip_compatibility_check=True)
            try:
                _check_optuna_tables(storage, shown)
                _prepare_own_tables(storage.engine, shown)
            except BaseException:
                storage.close()
                raise
    except StorageError:
        raise
    except ImportError as error:
        raise StorageError(
            f"storage: {shown} needs a driver that is missing ({error.__cause__ or error}); "
            "install it with pip"
        ) from error
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
        raise StorageError(f"storage: {shown} cannot be opened: {_root_cause(error)}") from error
    return storage


def holds_studies(url: str) -> bool:
    """Return whether there is a database at a URL that has our tables; nothing is created.

    Raises:
        StorageError: If the URL, its driver or the database cannot be used.
    """
    parsed = _parse_url(url)
    file = sqlite_file(url)
    if file is not None:
        if not file.exists():
            return False
        _check_sqlite_file(parsed.database, _show_url(parsed))
    try:
        engine = create_engine(parsed, poolclass=NullPool)
        with engine.connect() as connection:
            return inspect(connection).has_table(SchemaRow.__tablename__)
    except ImportError as error:
        raise StorageError(
            f"storage: {_show_url(parsed)} needs a driver that is missing ({error}); "
            "install it with pip"
        ) from error
    except SQLAlchemyError as error:
        raise StorageError(
            f"storage: {_show_url(parsed)} cannot be opened: {_root_cause(error)}"
        ) from error


def show_url(url: str) -> str:
    """Return a database URL as it may be shown: without its password."""
    return _show_url(_parse_url(url))


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL, or None for another kind of database."""
    parsed = _parse_url(url)
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database
    return Path(str(parsed.database)) if is_file else None


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        # The text itself is not repeated: it may hold a password.
        raise StorageError(
            "storage: this is not a database URL; for a file write sqlite:///PATH"
        ) from error
    supported = ("sqlite", *_CREATION_LOCKS)
    if parsed.get_backend_name() not in supported:
        raise StorageError(
            f"storage: {parsed.get_backend_name()!r} is not a supported kind of database; "
            f"use one of {', '.join(supported)}"
        )
    return parsed


def _show_url(url: URL) -> str:
    """Return the URL without its password; the query may hold one too and is left out."""
    return url.set(query={}).render_as_string(hide_password=True)


def _check_sqlite_file(database: str | None, shown: str) -> None:
    if not database or database == ":memory:" or database.startswith("file:"):
        raise StorageError(f"storage: {shown} names no file; write sqlite:///PATH")
    path = Path(database)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise StorageError(f"storage: the folder {folder} of {shown} does not exist; create it")
    if path.is_dir():
        raise StorageError(f"storage: {shown} is a folder; name a file in it")
    for place in (folder, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise StorageError(
                f"storage: {place} is not writable; change its permissions or choose another place"
            )
    if path.exists():
        with path.open("rb") as file:
            header = file.read(len(_SQLITE_HEADER))
        if header not in (b"", _SQLITE_HEADER):
            raise StorageError(
                f"storage: the file {path} is not a SQLite database; choose another name"
            )


@contextmanager
def _creation_lock(url: URL) -> Iterator[None]:
    if url.get_backend_name() == "sqlite":
        # An empty database as the lock: it works wherever SQLite does. The file stays, because
        # those who wait for it would fail if it were removed.
        lock = sqlite3.connect(f"{url.database}.lock", timeout=_BUSY_TIMEOUT_SECONDS)
        with closing(lock):
            lock.execute("BEGIN EXCLUSIVE")
            yield
    else:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(_CREATION_LOCKS[url.get_backend_name()]))
            yield


def _check_optuna_tables(storage: StudyStorage, shown: str) -> None:
    found, expected = storage.get_current_version(), storage.get_head_version()
    if found == expected:
        return
    remedy = (
        f"make a copy, then run: optuna storage upgrade --storage {shown}"
        if found in storage.get_all_versions()
        else "install the newer Optuna that wrote it"
    )
    raise StorageError(
        f"storage: the tables of Optuna in {shown} have version {found}, not {expected}; {remedy}"
    )


def _prepare_own_tables(engine: Engine, shown: str) -> None:
    with engine.begin() as connection:
        if inspect(connection).has_table(SchemaRow.__tablename__):
            version = connection.scalar(select(SchemaRow.version))
            if version is not None and version > REMEMBER_SCHEMA_VERSION:
                raise StorageError(
                    f"storage: {shown} was written by a newer remember-me (schema {version}, this "
                    f"one knows {REMEMBER_SCHEMA_VERSION}); install the newer one"
                )
        Row.metadata.create_all(connection)
        version = connection.scalar(select(SchemaRow.version))
        if version is None:
            connection.execute(insert(SchemaRow).values(id=1, version=REMEMBER_SCHEMA_VERSION))
        elif version < REMEMBER_SCHEMA_VERSION:
            # Every change so far only added tables, which are there by now.
            connection.execute(update(SchemaRow).values(version=REMEMBER_SCHEMA_VERSION))


def _root_cause(error: BaseException) -> str:
    """Return the driver's own words; those of SQLAlchemy add statements and a link."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())
