"""Makes SQLite take its write lock when a transaction begins, and keep a write-ahead log."""

from __future__ import annotations

import sqlite3

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin

SQLITE_PLUGIN = "remember_sqlite"


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
        event.listen(engine, "connect", _prepare_connection)
        event.listen(engine, "begin", _begin_transaction)


plugins.register(SQLITE_PLUGIN, __name__, SqliteTransactions.__name__)


def _prepare_connection(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver leaves BEGIN to us
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_transaction(connection: Connection) -> None:
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
