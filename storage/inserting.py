"""Inserts rows that another process may have inserted first, in every kind of database."""

from __future__ import annotations

from sqlalchemy import Insert
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session

from storage.tables import Row


def insert_unless_there(session: Session, table: type[Row]) -> Insert:
    """Return an insert that leaves a row as it is where a key of the new one is there already."""
    match session.get_bind().dialect.name:
        case "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        case "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        case _:
            return mysql.insert(table).prefix_with("IGNORE")
