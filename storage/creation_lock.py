"""Lets one process at a time create or change the tables of a database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from sqlalchemy import URL, create_engine, text
from sqlalchemy.pool import NullPool

LONGEST_WAIT_SECONDS = 60

_NAME = "remember_schema"
# Optuna creates its tables over connections of its own, so that no transaction can guard them.
# These locks belong to the session and end with it, also when its process is killed.
_LOCKS = {
    "postgresql": f"SELECT pg_advisory_lock(hashtext('{_NAME}'))",
    "mysql": f"SELECT get_lock('{_NAME}', {LONGEST_WAIT_SECONDS})",
    "mariadb": f"SELECT get_lock('{_NAME}', {LONGEST_WAIT_SECONDS})",
}


@contextmanager
def creation_lock(url: URL) -> Iterator[None]:
    """Keep every other process that opens this database waiting.

    A kind of database without such a lock is not guarded: there, one process must have opened it
    before others come.
    """
    kind = url.get_backend_name()
    if kind == "sqlite":
        # An empty database as the lock: it works wherever SQLite does. The file stays, because
        # those who wait for it would fail if it were removed.
        lock = sqlite3.connect(f"{url.database}.lock", timeout=LONGEST_WAIT_SECONDS)
        with closing(lock):
            lock.execute("BEGIN EXCLUSIVE")
            yield
    elif kind in _LOCKS:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(_LOCKS[kind]))
            yield
    else:
        yield
