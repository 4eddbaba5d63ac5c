"""Waits for a lost database, bounded and visible, and tries again what it interrupted."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from storage.errors import StorageError, root_cause

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_LONGEST_PAUSE_SECONDS = 5.0
_NOTICE_EVERY_SECONDS = 10.0
_GIVE_UP_POLL_SECONDS = 0.1


class DatabaseLost(StorageError):
    """The database did not come back in time; the message says how to go on."""


def _say_nothing(_: str) -> None:
    return


def _never() -> bool:
    return False


class Patience:
    """Waits until a database can be used again.

    Any number of threads may use one at once; each waits for itself. A pickled copy waits as long,
    but silently and to the end, for what listens to this one stays in its process.

    Args:
        longest_seconds: How long one call may wait in all before `DatabaseLost`.
        notice: Called with a line for the person when waiting begins, about every 10 seconds while
            it goes on, and when it ends well.
        should_give_up: Asked ten times a second while waiting; True ends it with `DatabaseLost`.
        first_pause_seconds: How long to wait before the second attempt, at most; the pauses double
            up to 5 seconds.
    """

    def __init__(
        self,
        *,
        longest_seconds: float = 600.0,
        notice: Callable[[str], None] = _say_nothing,
        should_give_up: Callable[[], bool] = _never,
        first_pause_seconds: float = 0.1,
    ) -> None:
        self.longest_seconds = longest_seconds
        self.notice = notice
        self.should_give_up = should_give_up
        self.first_pause_seconds = first_pause_seconds

    def __reduce__(self) -> tuple[Callable[[float], Patience], tuple[float]]:
        return _make_silent, (self.longest_seconds,)

    def outlast(
        self, call: Callable[[], _Result], *, drop_connections: Callable[[], None]
    ) -> _Result:
        """Return what a call returns, calling it again for as long as the database is lost.

        An attempt may have done its work and lost only the reply, so the call must bear to be
        repeated.

        Args:
            call: One or more whole transactions.
            drop_connections: Called after every failure, for the connections that are open are
                those that were lost.

        Raises:
            DatabaseLost: If it is lost for too long, or if waiting should be given up.
        """
        try:
            return call()
        except Exception as error:
            if not is_lost(error):
                raise
            first_error = error
        return self._wait(call, first_error, drop_connections)

    def _wait(
        self, call: Callable[[], _Result], error: Exception, drop_connections: Callable[[], None]
    ) -> _Result:
        began = time.monotonic()
        deadline, pause_seconds = began + self.longest_seconds, self.first_pause_seconds
        noticed = began
        self.notice(
            f"storage: the database cannot be used ({root_cause(error)}); waiting for it, "
            f"at most {_show_seconds(self.longest_seconds)}"
        )
        while True:
            drop_connections()
            # Uneven pauses, so that many workers do not come back at one moment.
            pause = min(pause_seconds * random.uniform(0.5, 1.0), deadline - time.monotonic())
            self._pause(pause, began, error)
            if time.monotonic() >= deadline:
                raise _lost(time.monotonic() - began, error) from error
            try:
                result = call()
            except Exception as next_error:
                if not is_lost(next_error):
                    raise
                error = next_error
            else:
                self.notice(
                    f"storage: the database is back after "
                    f"{_show_seconds(time.monotonic() - began)}; going on"
                )
                return result
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
            if time.monotonic() - noticed >= _NOTICE_EVERY_SECONDS:
                noticed = time.monotonic()
                self.notice(
                    f"storage: still waiting for the database, {_show_seconds(noticed - began)} "
                    f"of at most {_show_seconds(self.longest_seconds)} ({root_cause(error)})"
                )

    def _pause(self, seconds: float, began: float, error: Exception) -> None:
        end = time.monotonic() + seconds
        while True:
            if self.should_give_up():
                raise _lost(time.monotonic() - began, error) from error
            remaining = end - time.monotonic()
            if remaining <= 0:
                return
            time.sleep(min(remaining, _GIVE_UP_POLL_SECONDS))


def _make_silent(longest_seconds: float) -> Patience:
    return Patience(longest_seconds=longest_seconds)


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that the database is lost or cannot be used for now.

    Not one about what was asked of it: a broken constraint, an unknown table.
    """
    if isinstance(error, StorageInternalError):  # Optuna's, around any error of SQLAlchemy
        return error.__cause__ is not None and is_lost(error.__cause__)
    if isinstance(error, PendingRollbackError):
        # Optuna queries again after a first error; the code is that of a broken connection.
        return error.code == "8s2b"
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_ERROR:  # what other databases call a programming error
            return False
    return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated


def patient(call: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function wait for the database, with the patience of its storage.

    Its first argument, `storage`, is a `StudyStorage`; that of a method is one, or keeps one as
    `_storage`. It must bear to be repeated.
    """

    @wraps(call)
    def waiting(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        first = args[0] if args else kwargs["storage"]
        storage = cast(Any, getattr(first, "_storage", first))
        result: _Result = storage.outlast(lambda: call(*args, **kwargs))
        return result

    return waiting


def _lost(waited_seconds: float, error: Exception) -> DatabaseLost:
    return DatabaseLost(
        f"storage: the database could not be used for {_show_seconds(waited_seconds)} "
        f"({root_cause(error)}); nothing measured is lost: when it is back, run the same command "
        "again, and it goes on"
    )


def _show_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"
