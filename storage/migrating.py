"""Brings our tables of a database to this program's version, with Alembic's revisions."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, select

from storage.errors import StorageError
from storage.tables import SchemaRow

# The number of the last file in migrations/versions. Every change to our tables is a new one; a
# database of a newer one is refused.
REMEMBER_SCHEMA_VERSION = 4
VERSION_TABLE = "remember_alembic_version"  # Optuna owns `alembic_version`

_FOLDER = Path(__file__).with_name("migrations")
# Alembic hands the connection to its scripts through globals, so that threads must take turns.
_one_at_a_time = threading.Lock()


def revision_of(version: int) -> str:
    """Return a version of our tables as Alembic names it."""
    return f"{version:04}"


def upgrade_tables(connection: Connection, shown_url: str) -> None:
    """Create our tables or bring them to this version, within the connection's transaction.

    Tables from before Alembic (versions 1 and 2 of `remember_schema`) go through every revision: a
    revision leaves alone what is there, for their version does not tell each of their tables.

    Raises:
        StorageError: If a newer program wrote them.
    """
    options = {"version_table": VERSION_TABLE}
    found = MigrationContext.configure(connection, opts=options).get_current_revision()
    if found == revision_of(REMEMBER_SCHEMA_VERSION):
        return
    known = [revision_of(version) for version in range(1, REMEMBER_SCHEMA_VERSION + 1)]
    if found is not None and found not in known:
        raise _newer(shown_url, found.lstrip("0"))
    if found is None and inspect(connection).has_table(SchemaRow.__tablename__):
        version = connection.scalar(select(SchemaRow.version))
        if version is not None and version > REMEMBER_SCHEMA_VERSION:
            raise _newer(shown_url, str(version))
    with _one_at_a_time:
        command.upgrade(_configure(connection), "head")


def _configure(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


def _newer(shown_url: str, version: str) -> StorageError:
    return StorageError(
        f"storage: {shown_url} was written by a newer remember-me (schema {version}, this one "
        f"knows {REMEMBER_SCHEMA_VERSION}); install the newer one"
    )
