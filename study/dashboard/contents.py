"""Puts what a study found into Optuna's database, where every optuna-dashboard shows it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna_dashboard._custom_plot_data import (  # type: ignore[import-untyped]
    SYSTEM_ATTR_PLOT_DATA,
    split_plot_data,
)
from optuna_dashboard._note import (  # type: ignore[import-untyped]
    get_note_from_system_attrs,
    note_str_key_prefix,
    note_ver_key,
    split_body,
)
from sqlalchemy import func, select

from data.facts import text_digest
from storage.database import StudyStorage
from storage.patience import patient
from storage.reader import read_verdicts
from storage.tables import MeasurementRow, TrialRow
from study.dashboard.attributes import Attributes, change_attributes
from study.dashboard.figures import draw_small
from study.dashboard.notes import write_study_note, write_trial_notes
from study.place import Place
from study.stored import find_in

_FIGURES = f"{SYSTEM_ATTR_PLOT_DATA}remember-"
_WRITTEN = "remember:notes"  # a digest of each note as we wrote it, by trial id

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What a refresh left in the dashboard; `written_rows` is 0 where all was there already."""

    notes: int
    figures: int
    dropped_figures: tuple[str, ...]
    written_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStamp:
    """What tells whether a study has changed."""

    ended_trials: int
    measurements: int


@patient
def read_stamp(storage: StudyStorage, study: str) -> StudyStamp:
    """Return how far a study has come; zeros if there is none of this name."""
    ended = select(func.count()).select_from(TrialRow).filter_by(study=study)
    measured = select(func.count()).select_from(MeasurementRow).filter_by(study=study)
    with storage.begin_read() as session:
        return StudyStamp(
            ended_trials=session.scalar(ended.where(TrialRow.state != "running")) or 0,
            measurements=session.scalar(measured) or 0,
        )


def refresh_dashboard(storage: StudyStorage, place: Place) -> Refreshed:
    """Write the study's notes and figures for the dashboard, those that differ from what is there.

    A note that a person has changed is left as it is. A figure that is too large is dropped and
    logged.

    Raises:
        StudyNotFound: If the database holds no study of this name.
    """
    findings = find_in(storage, place)
    notes: dict[int | None, str] = {None: write_study_note(findings, place)}
    # Read at once: a trial's id is what the dashboard knows it by.
    ids = _trial_ids(storage, place.name)
    for number, note in write_trial_notes(
        findings, lambda measurement_id: read_verdicts(storage, measurement_id)
    ).items():
        if number in ids:
            notes[ids[number]] = note
    small = draw_small(findings)
    if small.dropped:
        logger.warning(
            "left out of the dashboard, for they are too large: %s; the report has them",
            ", ".join(small.dropped),
        )
    written_rows = change_attributes(
        storage,
        place.name,
        lambda present: {
            **_change_notes(present, notes),
            **_change_figures(present, small.figures),
        },
    )
    return Refreshed(
        notes=len(notes),
        figures=len(small.figures),
        dropped_figures=small.dropped,
        written_rows=written_rows,
    )


def _trial_ids(storage: StudyStorage, study: str) -> dict[int, int]:
    """Return Optuna's ids of trials by their numbers; none where Optuna has no such study."""
    try:
        study_id = storage.get_study_id_from_name(study)
    except KeyError:
        return {}
    trials = storage.get_all_trials(study_id, deepcopy=False)
    return {trial.number: trial._trial_id for trial in trials}


def _change_notes(present: Attributes, notes: Mapping[int | None, str]) -> dict[str, Any]:
    """Return the attributes with which the dashboard shows these notes, and no others of ours."""
    written: dict[str, str] = present.get(_WRITTEN, {})
    changed: dict[str, Any] = {}
    still_written: dict[str, str] = {}
    earlier = {_trial_id(name): "" for name in written}
    for trial_id, note in {**earlier, **notes}.items():
        name = _name(trial_id)
        there = get_note_from_system_attrs(present, trial_id)
        ours = written.get(name, text_digest(""))
        if text_digest(there["body"]) != ours:
            # A person wrote it, or changed ours. It stays, and so does what tells that.
            still_written |= {name: written[name]} if name in written else {}
            continue
        if note:
            still_written[name] = text_digest(note)
        if there["body"] == note:
            continue
        changed[note_ver_key(trial_id)] = there["version"] + 1
        prefix = note_str_key_prefix(trial_id)
        changed |= {key: None for key in present if key.startswith(prefix)}
        changed |= split_body(note, trial_id)
    return {**changed, _WRITTEN: still_written}


def _change_figures(present: Attributes, figures: Mapping[str, str]) -> dict[str, Any]:
    """Return the attributes that make the dashboard show these figures of ours and no others."""
    changed: dict[str, Any] = {key: None for key in present if key.startswith(_FIGURES)}
    for name, text in figures.items():
        changed |= split_plot_data(text, f"{SYSTEM_ATTR_PLOT_DATA}{name}:")
    return changed


def _name(trial_id: int | None) -> str:
    return "study" if trial_id is None else str(trial_id)


def _trial_id(name: str) -> int | None:
    return None if name == "study" else int(name)
