"""Reads what a study has recorded; it writes nothing and keeps no worker waiting."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import cast

from pydantic import TypeAdapter
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from data.agreement import Agreement
from data.measurements import AdapterCost, Answer, Floor, Label, Measurement, Verdict
from data.prompts import Phrasing, Prompt
from data.recipes import Recipe, Sampling
from storage.database import StudyNotFound, StudyStorage
from storage.encoding import decode_purpose
from storage.patience import patient
from storage.records import (
    AgreementRecord,
    Costs,
    LeaseRecord,
    MeasurementRecord,
    SittingRecord,
    StudyRecord,
    StudySummary,
    TrialRecord,
    TrialState,
    WorkerState,
)
from storage.tables import (
    AdapterCostRow,
    AgreementRow,
    AnswerRow,
    FloorRow,
    LeaseRow,
    MeasurementRow,
    PromptRow,
    RejudgementRow,
    SittingRow,
    StudyRow,
    TrialRow,
    database_seconds,
)

_ADAPTER_COST = TypeAdapter(AdapterCost)
_AGREEMENT = TypeAdapter(Agreement)
_FLOOR = TypeAdapter(Floor)
_MEASUREMENT = TypeAdapter(Measurement)
_PROMPT = TypeAdapter(Prompt)
_RECIPE = TypeAdapter(Recipe)
_SAMPLING = TypeAdapter(Sampling)
_STATE = TypeAdapter(WorkerState)


@patient
def read_study(storage: StudyStorage, name: str) -> StudyRecord:
    """Return a study with all trials and measurements, but without answers.

    Raises:
        StudyNotFound: If there is none of this name.
    """
    with storage.begin_read() as session:
        study = session.get(StudyRow, name)
        if study is None:
            names = sorted(session.scalars(select(StudyRow.name)))
            raise StudyNotFound(
                f"study: there is none called {name!r}; "
                + (f"there are: {', '.join(names)}" if names else "the database holds none")
            )
        # Before the trials, so that none of them belongs to a trial that is not read yet.
        measurements = _read_measurements(session, name)
        trials = session.scalars(select(TrialRow).filter_by(study=name).order_by(TrialRow.number))
        return StudyRecord(
            name=name,
            config=study.config,
            fingerprint=json.loads(study.fingerprint),
            slots=study.slots,
            seed=study.seed,
            created_at=datetime.fromtimestamp(study.created_at_seconds, UTC),
            base_measurements=tuple(measurements[None]),
            trials=tuple(_describe_trial(row, measurements[row.number]) for row in trials),
            floors=_read_floors(session, name),
        )


@patient
def read_verdicts(
    storage: StudyStorage, measurement_id: int, *, phrasing: Phrasing | None = None
) -> tuple[Verdict, ...]:
    """Return the verdicts of a measurement, equal to those recorded and in their order.

    With a `phrasing` only those about its prompts. A measurement without answers, or one that is
    not there, gives an empty tuple.
    """
    query = (
        select(AnswerRow, PromptRow)
        .join(PromptRow, AnswerRow.prompt_id == PromptRow.id)
        .where(AnswerRow.measurement_id == measurement_id)
        .order_by(AnswerRow.position)
    )
    if phrasing is not None:
        query = query.where(PromptRow.phrasing == phrasing)
    with storage.begin_read() as session:
        rows = session.execute(query)
        return tuple(
            Verdict(
                answer=Answer(
                    prompt=_describe_prompt(prompt), text=answer.text, tokens=answer.tokens
                ),
                label=cast(Label, answer.label),
                judge=answer.judge,
            )
            for answer, prompt in rows
        )


@patient
def read_rejudged(storage: StudyStorage, measurement_id: int, judge: str) -> tuple[Verdict, ...]:
    """Return the verdicts of another judge about a measurement's answers, in their order.

    An empty tuple where that judge was not asked about them.
    """
    with storage.begin_read() as session:
        row = session.get(RejudgementRow, (measurement_id, judge))
        labels: list[Label] = [] if row is None else json.loads(row.payload)
    if not labels:
        return ()
    return tuple(
        replace(verdict, label=label, judge=judge)
        for verdict, label in zip(read_verdicts(storage, measurement_id), labels, strict=True)
    )


@patient
def read_agreements(storage: StudyStorage, name: str) -> tuple[AgreementRecord, ...]:
    """Return how far judges agree with people, the newest last; none if nobody was checked."""
    with storage.begin_read() as session:
        rows = session.scalars(
            select(AgreementRow).filter_by(study=name).order_by(AgreementRow.id)
        )
        return tuple(
            AgreementRecord(
                judge=row.judge,
                digest=row.digest,
                labelled=row.labelled,
                agreement=_AGREEMENT.validate_json(row.payload),
                of_study=_AGREEMENT.validate_json(row.of_study),
                recorded_at=datetime.fromtimestamp(row.recorded_at_seconds, UTC),
            )
            for row in rows
        )


@patient
def read_adapter_costs(storage: StudyStorage, name: str) -> tuple[AdapterCost, ...]:
    """Return what a study's adapters take, by trial and epoch; none before they are measured."""
    with storage.begin_read() as session:
        payloads = session.scalars(
            select(AdapterCostRow.payload)
            .filter_by(study=name)
            .order_by(AdapterCostRow.trial, AdapterCostRow.epoch)
        )
        return tuple(map(_ADAPTER_COST.validate_json, payloads))


@patient
def read_said(storage: StudyStorage, name: str) -> frozenset[tuple[str, str]]:
    """Return what the models of a study said to which question: every pair of the two texts."""
    with storage.begin_read() as session:
        rows = session.execute(
            select(PromptRow.question, AnswerRow.text)
            .join(PromptRow, AnswerRow.prompt_id == PromptRow.id)
            .where(PromptRow.study == name)
            .distinct()
        )
        return frozenset((question, text) for question, text in rows)


@patient
def list_studies(storage: StudyStorage) -> tuple[StudySummary, ...]:
    """Return all studies by name, each with its trials counted by state."""
    with storage.begin_read() as session:
        counts: defaultdict[str, dict[TrialState, int]] = defaultdict(
            lambda: {"running": 0, "complete": 0, "pruned": 0, "failed": 0}
        )
        for study, state, count in session.execute(
            select(TrialRow.study, TrialRow.state, func.count()).group_by(
                TrialRow.study, TrialRow.state
            )
        ):
            counts[study][cast(TrialState, state)] = count
        return tuple(
            StudySummary(
                name=row.name,
                slots=row.slots,
                seed=row.seed,
                created_at=datetime.fromtimestamp(row.created_at_seconds, UTC),
                trials=counts[row.name],
            )
            for row in session.scalars(select(StudyRow).order_by(StudyRow.name))
        )


@patient
def read_sittings(storage: StudyStorage, name: str) -> tuple[SittingRecord, ...]:
    """Return the sittings of a study in order of their beginning; none if it does not exist."""
    with storage.begin_read() as session:
        rows = session.scalars(
            select(SittingRow).filter_by(study=name).order_by(SittingRow.began_at_seconds)
        )
        return tuple(
            SittingRecord(
                id=row.id,
                owner=row.owner,
                device=row.device,
                slots=row.slots,
                began_at_seconds=row.began_at_seconds,
                seen_at_seconds=row.seen_at_seconds,
                ended_at_seconds=row.ended_at_seconds,
                state=None if row.payload is None else _STATE.validate_json(row.payload),
                versions=json.loads(row.versions or "{}"),
            )
            for row in rows
        )


@patient
def count_ended_epochs(storage: StudyStorage, name: str) -> int:
    """Return how many epochs the ended trials of a study have trained in all."""
    with storage.begin_read() as session:
        total = select(func.coalesce(func.sum(TrialRow.last_epoch), 0)).filter_by(study=name)
        return int(session.scalar(total) or 0)


@patient
def sum_reserved_epochs(storage: StudyStorage, name: str) -> int:
    """Return how many epochs a study's trials have trained or may still train.

    An ended trial counts with those it trained, a running one with all that its recipe asks for.
    """
    # One statement: between two, a trial could end and be counted in neither.
    is_running = TrialRow.state == "running"
    recipe_of_running = case((is_running, TrialRow.recipe))
    query = select(TrialRow.last_epoch, recipe_of_running).where(TrialRow.study == name)
    with storage.begin_read() as session:
        return sum(
            (last_epoch or 0) if recipe is None else _RECIPE.validate_json(recipe).epochs
            for last_epoch, recipe in session.execute(query)
        )


@patient
def read_clock(storage: StudyStorage) -> float:
    """Return the time by the database's clock, in seconds since 1970."""
    with storage.begin_read() as session:
        return session.execute(select(database_seconds())).scalar_one()


@patient
def read_leases(storage: StudyStorage, study: str) -> tuple[LeaseRecord, ...]:
    """Return who holds which trials of a study, by trial; locks of the study are none of them.

    Trials that were given back stay, without an owner. Nothing if there is no such study.
    """
    with storage.begin_read() as session:
        rows = session.scalars(
            select(LeaseRow)
            .filter_by(study=study)
            .where(LeaseRow.trial >= 0)
            .order_by(LeaseRow.trial)
        )
        return tuple(
            LeaseRecord(
                trial=row.trial,
                owner=row.owner,
                fence=row.fence,
                expires_at_seconds=row.expires_at_seconds,
            )
            for row in rows
        )


def _read_measurements(
    session: Session, study: str
) -> defaultdict[int | None, list[MeasurementRecord]]:
    by_trial: defaultdict[int | None, list[MeasurementRecord]] = defaultdict(list)
    for row in session.scalars(
        select(MeasurementRow)
        .filter_by(study=study)
        .order_by(MeasurementRow.epoch, MeasurementRow.id)
    ):
        purpose, repeat = decode_purpose(row.purpose)
        by_trial[row.trial].append(
            MeasurementRecord(
                id=row.id,
                trial=row.trial,
                purpose=purpose,
                repeat=repeat,
                adapter=row.adapter,
                measurement=_read_measurement(row.payload),
                recorded_at=datetime.fromtimestamp(row.recorded_at_seconds, UTC),
            )
        )
    return by_trial


@lru_cache(maxsize=8192)
def _read_measurement(payload: str) -> Measurement:
    """Return a measurement; workers read a study again and again, and it never changes."""
    return _MEASUREMENT.validate_json(payload)


def _read_floors(session: Session, study: str) -> tuple[Floor, ...]:
    payloads = session.scalars(
        select(FloorRow.payload).filter_by(study=study).order_by(FloorRow.id)
    )
    return tuple(map(_FLOOR.validate_json, payloads))


def _describe_trial(row: TrialRow, measurements: list[MeasurementRecord]) -> TrialRecord:
    return TrialRecord(
        number=row.number,
        asked_index=row.asked_index,
        state=cast(TrialState, row.state),
        reason=row.reason,
        recipe=_RECIPE.validate_json(row.recipe),
        sampling=_SAMPLING.validate_json(row.sampling),
        seed=row.seed,
        costs=_describe_costs(row),
        measurements=tuple(measurements),
    )


def _describe_costs(row: TrialRow) -> Costs | None:
    if (
        row.trained_tokens is None
        or row.generated_tokens is None
        or row.seconds is None
        or row.last_epoch is None
        or row.highest_learning_rate is None
    ):
        return None
    return Costs(
        trained_tokens=row.trained_tokens,
        generated_tokens=row.generated_tokens,
        seconds=row.seconds,
        last_epoch=row.last_epoch,
        highest_learning_rate=row.highest_learning_rate,
    )


def _describe_prompt(row: PromptRow) -> Prompt:
    return _PROMPT.validate_python(
        {
            "text": row.text,
            "style": row.style,
            "phrasing": row.phrasing,
            "subject": row.subject,
            "question": row.question,
            "accepted": json.loads(row.accepted),
            "templated": row.templated,
            "ring": row.ring,
        }
    )
