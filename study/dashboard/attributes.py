"""Reads and writes the attributes of an Optuna study in which the dashboard keeps its contents."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from optuna.storages._rdb.models import StudyModel, StudySystemAttributeModel
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage.database import StudyStorage
from storage.patience import patient

Attributes = Mapping[str, Any]


@patient
def change_attributes(
    storage: StudyStorage, study: str, change: Callable[[Attributes], Attributes]
) -> int:
    """Change a study's system attributes in one transaction; return how many rows it wrote.

    A figure is many rows. Optuna's own calls write one row each, and whoever polls in between
    reads half of the old figure and half of the new one.

    Args:
        storage: Where the study is.
        study: Its name; 0 is returned where Optuna has no such study.
        change: Returns, for the attributes as they are, those that become others; None removes
            one. It may be called several times.
    """
    try:
        return _change(storage, study, change)
    except IntegrityError:
        return _change(storage, study, change)  # a person has just added a note of their own


def _change(storage: StudyStorage, study: str, change: Callable[[Attributes], Attributes]) -> int:
    with storage.begin_write() as session, session.begin():
        study_id = session.scalar(
            # Locked, so that several refreshers follow one another.
            select(StudyModel.study_id).filter_by(study_name=study).with_for_update()
        )
        if study_id is None:
            return 0
        rows = _rows(session, study_id)
        present = {key: json.loads(str(row.value_json)) for key, row in rows.items()}
        written = 0
        for key, value in change(present).items():
            row = rows.get(key)
            if value is None:
                if row is None:
                    continue
                session.delete(row)
            elif row is None:
                session.add(
                    StudySystemAttributeModel(
                        study_id=study_id, key=key, value_json=json.dumps(value)
                    )
                )
            elif present[key] == value:
                continue
            else:
                row.value_json = json.dumps(value)
            written += 1
        return written


def _rows(session: Session, study_id: int) -> dict[str, StudySystemAttributeModel]:
    rows = session.scalars(select(StudySystemAttributeModel).filter_by(study_id=study_id))
    return {str(row.key): row for row in rows}
