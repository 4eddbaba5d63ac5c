"""Deletes a study: our records and Optuna's."""

from __future__ import annotations

from sqlalchemy import delete, select

from storage.database import StudyNotFound, StudyStorage
from storage.tables import StudyRow


def delete_study(storage: StudyStorage, name: str) -> None:
    """Remove everything the database holds about a study; files of adapters stay.

    Workers that still train for it lose their leases. Our records go first, so that a deletion cut
    short is finished by repeating it.

    Raises:
        StudyNotFound: If neither we nor Optuna know the name.
    """
    was_recorded = False

    def delete_record() -> None:
        nonlocal was_recorded
        with storage.begin_write() as session, session.begin():
            # Kept over attempts: one that lost only the reply has deleted it.
            was_recorded |= session.scalar(select(StudyRow.name).filter_by(name=name)) is not None
            session.execute(delete(StudyRow).filter_by(name=name))

    storage.outlast(delete_record)
    try:
        storage.delete_study(storage.get_study_id_from_name(name))
    except KeyError as error:
        if not was_recorded:
            raise StudyNotFound(f"study: there is none called {name!r} to delete") from error
