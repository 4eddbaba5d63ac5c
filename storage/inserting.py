"""Inserts rows that another process may have inserted first, in every kind of database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import insert
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage.tables import Row


def insert_unless_there(
    session: Session, table: type[Row], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows, but leave one as it is where a key of the new one is there already."""
    match session.get_bind().dialect.name:
        case "sqlite":
            session.execute(sqlite.insert(table).on_conflict_do_nothing(), rows)
        case "postgresql":
            session.execute(postgresql.insert(table).on_conflict_do_nothing(), rows)
        case "mysql" | "mariadb":
            session.execute(mysql.insert(table).prefix_with("IGNORE"), rows)
        case _:  # without a statement of its own: row by row, each taken back if it fails
            for row in rows:
                try:
                    with session.begin_nested():
                        session.execute(insert(table), row)
                except IntegrityError:
                    continue
