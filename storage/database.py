"""Opens the database of a study: Optuna's storage with our tables beside it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy import URL, create_engine, inspect, select
from sqlalchemy.exc import CompileError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from storage.creation_lock import LONGEST_WAIT_SECONDS, creation_lock
from storage.errors import StorageError, StudyNotFound, root_cause
from storage.migrating import upgrade_tables
from storage.patience import Patience, patient
from storage.sqlite_transactions import SQLITE_PLUGIN
from storage.tables import SchemaRow, database_seconds
from storage.urls import parse_url, show_parsed_url, show_url, sqlite_file, untested_kind

__all__ = [
    "StorageError",
    "StudyNotFound",
    "StudyStorage",
    "holds_studies",
    "open_storage",
    "show_url",
    "sqlite_file",
    "untested_kind",
]

_Result = TypeVar("_Result")

_SQLITE_HEADER = b"SQLite format 3\x00"
# Without them, a host that vanished keeps a worker waiting for hours before it notices.
_PSYCOPG_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}


class StudyStorage(RDBStorage):
    """Optuna's storage; our tables live in the same database and use the same engine.

    A lost database is waited for, with its `patience`, in every method of Optuna's storages and in
    all that reads or writes our tables through it.
    """

    patience: Patience = Patience()  # waits silently

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

    def outlast(self, call: Callable[[], _Result]) -> _Result:
        """Return what a call returns, repeating it until the database is there.

        Raises:
            DatabaseLost: If that takes too long.
        """
        return self.patience.outlast(call, drop_connections=self._drop_connections)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Update a trial as Optuna does; one that an interrupted attempt ended so is no error.

        A waiting trial that an interrupted attempt set running counts as taken by another. Then,
        and where `create_new_trial` is repeated, a running trial that nobody holds is left; those
        are what workers take up when they have nothing of their own.
        """

        def is_done() -> bool:
            trial = self.get_trial(trial_id)
            return trial.state == state and values in (None, trial.values)

        def update() -> bool:
            return super(StudyStorage, self).set_trial_state_values(trial_id, state, values)

        values = None if values is None else [float(value) for value in values]
        return self._repeat(update, UpdateFinishedTrialError, is_done, done=True)

    def delete_study(self, study_id: int) -> None:
        """Delete a study as Optuna does; one that an interrupted attempt deleted is no error."""

        def delete() -> None:
            super(StudyStorage, self).delete_study(study_id)

        self._repeat(delete, KeyError, lambda: True, done=None)

    def _repeat(
        self,
        call: Callable[[], _Result],
        expected: type[Exception],
        is_done: Callable[[], bool],
        *,
        done: _Result,
    ) -> _Result:
        """Outlast a call that, once its work is done, raises an expected error when repeated."""
        attempts = count(1)

        def attempt() -> _Result:
            is_first = next(attempts) == 1
            try:
                return call()
            except expected:
                if is_first or not is_done():
                    raise
                return done

        return self.outlast(attempt)

    def _drop_connections(self) -> None:
        # A session whose connection is gone may fail to say goodbye; it is dropped all the same.
        with suppress(SQLAlchemyError):
            self.remove_session()
        self.engine.dispose()


# What Optuna's cache, which stands before every storage of a study, calls beside public methods.
_CALLED_BY_CACHE = (
    "_create_new_trial",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
    "_get_trials",
    "_set_trial_param",
)
_WAITS_ALREADY = ("delete_study", "set_trial_state_values")


def _make_patient() -> None:
    """Let Optuna's own methods wait for the database, each as one transaction.

    All of them bear to be repeated: setting a parameter or an attribute twice changes nothing, and
    of a study that was created by an interrupted attempt it is said that it exists, upon which
    Optuna loads it.
    """
    names = [name for name in dir(BaseStorage) if not name.startswith("_")]
    for name in (*names, *_CALLED_BY_CACHE):
        if name not in (*_WAITS_ALREADY, "check_trial_is_updatable", "remove_session"):
            setattr(StudyStorage, name, patient(getattr(RDBStorage, name)))


_make_patient()


def open_storage(url: str) -> StudyStorage:
    """Return the storage at a database URL, creating or upgrading all tables where needed.

    Any number of processes may open the same empty database at once.

    Raises:
        StorageError: If the URL, its driver or the database cannot be used, or if the tables were
            made by another version of Optuna or a newer one of this program.
    """
    parsed = parse_url(url)
    shown = show_parsed_url(parsed)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite:
        _check_sqlite_file(parsed.database, shown)
    else:
        url = parsed.render_as_string(hide_password=False)
    try:
        _check_clock(parsed, shown)
        with creation_lock(parsed):
            # RDBStorage fills in "{SCHEMA_VERSION}" by str.format, so other braces are doubled.
            template = url.replace("{", "{{").replace("}", "}}")
            if is_sqlite:
                # Optuna prepares an empty database with one transaction inside another, which
                # would wait for itself if both took the write lock.
                RDBStorage(template, skip_compatibility_check=True).engine.dispose()
            # Its versions are checked below, where the message can name the database.
            storage = StudyStorage(
                template, _choose_engine_options(parsed), skip_compatibility_check=True
            )
            try:
                _check_optuna_tables(storage, shown)
                with storage.engine.begin() as connection:
                    upgrade_tables(connection, shown)
            except BaseException:
                storage.close()
                raise
    except StorageError:
        raise
    except ImportError as error:
        raise _missing_driver(parsed, error) from error
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
        raise StorageError(f"storage: {shown} cannot be opened: {root_cause(error)}") from error
    return storage


def holds_studies(url: str) -> bool:
    """Return whether there is a database at a URL that has our tables; nothing is created.

    Raises:
        StorageError: If the URL, its driver or the database cannot be used.
    """
    parsed = parse_url(url)
    shown = show_parsed_url(parsed)
    file = sqlite_file(url)
    if file is not None:
        if not file.exists():
            return False
        _check_sqlite_file(parsed.database, shown)
    try:
        engine = create_engine(parsed, poolclass=NullPool)
        with engine.connect() as connection:
            return inspect(connection).has_table(SchemaRow.__tablename__)
    except ImportError as error:
        raise _missing_driver(parsed, error) from error
    except SQLAlchemyError as error:
        raise StorageError(f"storage: {shown} cannot be opened: {root_cause(error)}") from error


def _choose_engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {
            "plugins": [SQLITE_PLUGIN],
            "connect_args": {"timeout": LONGEST_WAIT_SECONDS},
        }
    options: dict[str, Any] = {
        # A trial may leave its connection idle for an hour; servers and firewalls drop those.
        "pool_pre_ping": True,
        # MySQL's default would hide what other workers commit during a transaction.
        "isolation_level": "READ COMMITTED",
        "pool_recycle": 300,
        "pool_size": 2,
        "max_overflow": 2,
    }
    if url.get_driver_name() == "psycopg":
        options["connect_args"] = {
            name: value for name, value in _PSYCOPG_OPTIONS.items() if name not in url.query
        }
    return options


def _missing_driver(url: URL, error: ImportError) -> StorageError:
    remedy = (
        'pip install "remember-me[postgresql]"'
        if url.get_driver_name() == "psycopg"
        else "install it with pip"
    )
    return StorageError(
        f"storage: {show_parsed_url(url)} needs a driver that is missing "
        f"({error.__cause__ or error}); {remedy}"
    )


def _check_clock(url: URL, shown: str) -> None:
    try:
        select(database_seconds()).compile(dialect=url.get_dialect()())
    except CompileError as error:
        raise StorageError(
            f"storage: {shown} cannot be used: how to ask {url.get_backend_name()} for the time "
            "is not known here, and all leases go by it; use sqlite, postgresql or mysql"
        ) from error


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
