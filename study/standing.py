"""Reads how a study stands while it runs, without a model."""

from __future__ import annotations

from analysis.workforce import StudyStatus, study_status
from storage.database import StorageError, StudyStorage
from storage.patience import Patience
from storage.reader import read_clock, read_leases, read_sittings, read_study
from study.place import Place, open_place
from study.spec import StudySpec
from study.stored import reference_of


class Onlooker:
    """Reads again and again how the study of a place stands, once there is one."""

    def __init__(self, place: Place) -> None:
        """Open nothing yet: the database may not be there."""
        self._place = place
        self._storage: StudyStorage | None = None

    def look(self) -> StudyStatus | None:
        """Return how the study stands now; None while there is none, or no database to be had."""
        try:
            if self._storage is None:
                if not self._place.has_database:
                    return None
                self._storage = open_place(self._place)
                # Whoever works there waits for a lost database, and says so.
                self._storage.patience = Patience(longest_seconds=0)
            return standing_in(self._storage, self._place.name)
        except StorageError:
            return None

    def sees_trials(self) -> bool:
        """Return whether the study was begun, so that other workers can join it."""
        status = self.look()
        return status is not None and sum(status.counts.values()) > 0

    def close(self) -> None:
        """Close the connection, if one was opened."""
        if self._storage is not None:
            self._storage.close()


def standing_in(storage: StudyStorage, name: str) -> StudyStatus:
    """Return how a study of an opened database stands.

    Raises:
        StudyNotFound: If it holds no study of this name.
    """
    record = read_study(storage, name)
    spec = StudySpec.model_validate_json(record.config)
    base = record.base
    return study_status(
        record,
        read_sittings(storage, name),
        read_leases(storage, name),
        total=spec.trials,
        reference=reference_of(spec, base.measurement.recall.value if base else None),
        now_seconds=read_clock(storage),
    )
