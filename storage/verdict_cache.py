"""Keeps what judges decided, for all studies of a database, so that nobody is asked twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import cast

from sqlalchemy import select

from data.measurements import Label
from storage.database import StudyStorage
from storage.inserting import insert_unless_there
from storage.patience import patient
from storage.tables import VerdictRow

# Databases bound how many values one statement may have: SQLite at 999 before its version 3.32.
_CHUNK = 400


class VerdictCache:
    """Labels by keys of up to 64 characters, which say all that a verdict depends on.

    They belong to no study and outlive the studies they were asked for. Any number of processes
    may read and write at once.
    """

    def __init__(self, storage: StudyStorage) -> None:
        self._storage = storage

    @patient
    def read(self, keys: Sequence[str]) -> Mapping[str, Label]:
        """Return the labels of those keys that are there."""
        labels: dict[str, Label] = {}
        remaining = iter(dict.fromkeys(keys))
        with self._storage.begin_read() as session:
            while chunk := list(islice(remaining, _CHUNK)):
                rows = session.execute(
                    select(VerdictRow.digest, VerdictRow.label).where(VerdictRow.digest.in_(chunk))
                )
                labels |= {digest: cast(Label, label) for digest, label in rows}
        return labels

    @patient
    def write(self, labels: Mapping[str, Label]) -> None:
        """Keep labels; a key that is there keeps its label."""
        if not labels:
            return
        # In one order, so that two writers of the same keys do not wait for each other in a ring.
        rows = [{"digest": key, "label": labels[key]} for key in sorted(labels)]
        with self._storage.begin_write() as session, session.begin():
            insert_unless_there(session, VerdictRow, rows)
