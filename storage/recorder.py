"""Writes a study's records: one transaction a call, and none for a trial whose lease is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from uuid import uuid4

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from data.agreement import Agreement
from data.facts import text_digest
from data.measurements import AdapterCost, Floor, Label, Measurement, Verdict
from data.prompts import Prompt
from data.recipes import Recipe, Sampling
from storage.database import StorageError, StudyNotFound, StudyStorage
from storage.encoding import encode, encode_purpose
from storage.inserting import insert_unless_there
from storage.leases import Lease, check_lease, host_of
from storage.patience import patient
from storage.records import Costs, Ending, Purpose, WorkerState
from storage.tables import (
    AdapterCostRow,
    AgreementRow,
    AnswerRow,
    FloorRow,
    MeasurementRow,
    PromptRow,
    RejudgementRow,
    SittingRow,
    StudyRow,
    TrialRow,
    database_seconds,
)

# A worker that was seen within this time counts as alive, unless it has said that it leaves.
_ALIVE_SECONDS = 180


class FingerprintMismatch(StorageError):
    """The study of this name is another one; the message lists what differs."""


class Recorder:
    """Writes everything that one study finds out.

    Every method is one transaction: after a crash its rows are all there or none is. Repeating a
    call, as a restarted worker does, changes nothing.
    """

    def __init__(self, storage: StudyStorage, study: str) -> None:
        self._storage = storage
        self._study = study

    @patient
    def create_study_record(
        self, *, config: str, fingerprint: Mapping[str, str], slots: int, seed: int
    ) -> int:
        """Record the study unless it is there, and return its slots: those it was created with.

        A study that is there takes the new `config`: a person may raise the number of trials.

        Args:
            config: The resolved study file.
            fingerprint: What may never change within a study, by name (space, facts, model, …).
            slots: How many trials run at once.
            seed: The study's seed, below 2**63.

        Raises:
            FingerprintMismatch: If the recorded study has another fingerprint or seed.
        """
        with self._storage.begin_write() as session, session.begin():
            values = {
                "name": self._study,
                "config": config,
                "fingerprint": json.dumps(dict(fingerprint), sort_keys=True),
                "slots": slots,
                "seed": seed,
            }
            insert_unless_there(session, StudyRow, [values])
            row = session.get_one(StudyRow, self._study, with_for_update=True)
            recorded = {**json.loads(row.fingerprint), "seed": str(row.seed)}
            self._compare_fingerprints(recorded, {**fingerprint, "seed": str(seed)})
            row.config = config
            return row.slots

    @patient
    def record_trial_started(
        self, lease: Lease, *, asked_index: int, recipe: Recipe, sampling: Sampling, seed: int
    ) -> None:
        """Record a trial as running; one that is recorded already is left as it is.

        Raises:
            LeaseLost: If the trial no longer belongs to this worker.
            StorageError: If another trial has this asked index.
        """
        with self._begin(lease) as session:
            of_this_study = select(TrialRow.number).filter_by(study=self._study)
            if session.scalar(of_this_study.filter_by(number=lease.trial)) is not None:
                return
            other = session.scalar(of_this_study.filter_by(asked_index=asked_index))
            if other is not None:
                raise StorageError(
                    f"asked_index: {asked_index} of study {self._study!r} belongs to trial "
                    f"{other}, so trial {lease.trial} cannot have it"
                )
            session.add(
                TrialRow(
                    study=self._study,
                    number=lease.trial,
                    asked_index=asked_index,
                    recipe=encode(recipe),
                    sampling=encode(sampling),
                    seed=seed,
                    state="running",
                )
            )

    @patient
    def record_measurement(
        self,
        lease: Lease | None,
        measurement: Measurement,
        verdicts: Sequence[Verdict],
        *,
        purpose: Purpose,
        repeat: int = 0,
        adapter: str | None = None,
    ) -> int:
        """Record a measurement with its prompts, answers and verdicts, and return its id.

        One that is recorded already (same trial, epoch, sampling name, purpose, repeat and
        version) stays as it is, answers included, and its id is returned.

        Args:
            lease: The right to write about the measured trial; None for the untouched base.
            measurement: What was measured.
            verdicts: What it rests on, in any order; the order is kept. A NUL in an answer is
                written as U+FFFD.
            purpose: Why it was measured.
            repeat: Which of several trainings with fresh seeds, from 1; 0 for all else.
            adapter: Where the measured adapter lies, if it was kept.

        Raises:
            LeaseLost: If the trial no longer belongs to this worker.
            StudyNotFound: If the study has no record yet.
        """
        identity = {
            "study": self._study,
            "trial": lease.trial if lease else None,
            "epoch": measurement.epoch,
            "sampling": measurement.sampling.name,
            "purpose": encode_purpose(purpose, repeat),
            "version": measurement.version,
        }
        with self._begin(lease) as session:
            recorded = session.scalar(select(MeasurementRow.id).filter_by(**identity))
            if recorded is not None:
                return recorded
            row = MeasurementRow(
                **identity,
                recall=measurement.recall.value,
                knowledge_loss=measurement.knowledge_loss.value,
                payload=encode(measurement),
                adapter=adapter,
            )
            session.add(row)
            session.flush()
            self._insert_answers(session, row.id, verdicts)
            return row.id

    @patient
    def record_floors(self, floors: Sequence[Floor]) -> None:
        """Record what the untouched model recalls with facts in its prompt.

        A floor whose name is recorded already stays as it is.

        Raises:
            StudyNotFound: If the study has no record yet.
        """
        with self._begin(None) as session:
            recorded = set(session.scalars(select(FloorRow.name).filter_by(study=self._study)))
            session.add_all(
                FloorRow(
                    study=self._study,
                    name=floor.name,
                    recall=floor.recall.value,
                    payload=encode(floor),
                )
                for floor in floors
                if floor.name not in recorded
            )

    @patient
    def record_adapter_costs(self, costs: Sequence[AdapterCost]) -> None:
        """Record what adapters take; one of a trial and epoch that is recorded stays as it is.

        Raises:
            StudyNotFound: If the study has no record yet.
        """
        with self._begin(None) as session:
            query = select(AdapterCostRow.trial, AdapterCostRow.epoch)
            rows = session.execute(query.filter_by(study=self._study))
            recorded = {(trial, epoch) for trial, epoch in rows}
            session.add_all(
                AdapterCostRow(
                    study=self._study, trial=cost.trial, epoch=cost.epoch, payload=encode(cost)
                )
                for cost in costs
                if (cost.trial, cost.epoch) not in recorded
            )

    @patient
    def record_trial_ended(
        self, lease: Lease, *, state: Ending, costs: Costs, reason: str | None = None
    ) -> None:
        """Record how a trial ended and what it took; one that has ended already is left as it is.

        Raises:
            LeaseLost: If the trial no longer belongs to this worker.
        """
        with self._begin(lease) as session:
            session.execute(
                update(TrialRow)
                .filter_by(study=self._study, number=lease.trial, state="running")
                .values(
                    state=state,
                    reason=reason,
                    trained_tokens=costs.trained_tokens,
                    generated_tokens=costs.generated_tokens,
                    seconds=costs.seconds,
                    last_epoch=costs.last_epoch,
                    highest_learning_rate=costs.highest_learning_rate,
                )
            )

    @patient
    def record_rejudgement(
        self, measurement_id: int, labels: Sequence[Label], *, judge: str
    ) -> None:
        """Record what another judge makes of a measurement's answers.

        The measurement and its own verdicts stay as they are; an earlier judging by a judge of
        this name is replaced.

        Args:
            measurement_id: Of a measurement of this study.
            labels: One for each of its answers, in their order.
            judge: The name of the judge.

        Raises:
            StudyNotFound: If the study has no record yet.
            StorageError: If the study has no such measurement, or not so many answers of it.
        """
        identity = {"measurement_id": measurement_id, "judge": judge}
        with self._begin(None) as session:
            answers = session.scalar(
                select(func.count(AnswerRow.position))
                .join(MeasurementRow, AnswerRow.measurement_id == MeasurementRow.id)
                .where(MeasurementRow.id == measurement_id, MeasurementRow.study == self._study)
            )
            if not labels or answers != len(labels):
                raise StorageError(
                    f"labels: {len(labels)} cannot be stored of measurement {measurement_id}, "
                    f"of which study {self._study!r} has {answers} answers; judge each of them"
                )
            session.execute(delete(RejudgementRow).filter_by(**identity))
            session.add(RejudgementRow(**identity, payload=json.dumps(list(labels))))

    @patient
    def record_agreement(
        self, agreement: Agreement, *, of_study: Agreement, judge: str, digest: str
    ) -> None:
        """Record how far a judge agrees with people; an earlier one of the same is replaced.

        Args:
            agreement: Over all labelled answers of a file.
            of_study: Over those among them that models of this study gave.
            judge: The judge's name.
            digest: Of the labelled answers, at most 64 characters.

        Raises:
            StudyNotFound: If the study has no record yet.
        """
        identity = {"study": self._study, "judge": judge, "digest": digest}
        with self._begin(None) as session:
            session.execute(delete(AgreementRow).filter_by(**identity))
            session.add(
                AgreementRow(
                    **identity,
                    labelled=agreement.judged + agreement.unjudged,
                    payload=encode(agreement),
                    of_study=encode(of_study),
                )
            )

    def begin_sitting(
        self,
        *,
        owner: str,
        device: str,
        slots: int = 0,
        versions: Mapping[str, str] | None = None,
    ) -> int:
        """Record that a worker begins, and return the sitting's id.

        Args:
            owner: The worker, as `describe_this_process` names it.
            device: What it trains on.
            slots: How many trials it runs at once.
            versions: Of the packages that it runs on, by name.

        Raises:
            StudyNotFound: If the study has no record yet.
            StorageError: If a worker of another host uses this database, which is SQLite's.
        """
        # Made here, so that all attempts to write it mean one sitting.
        row = SittingRow(
            study=self._study,
            owner=owner,
            device=device,
            slots=slots,
            versions=json.dumps(dict(versions or {}), sort_keys=True),
            token=uuid4().hex,
        )
        return self._begin_sitting(row)

    @patient
    def _begin_sitting(self, new: SittingRow) -> int:
        with self._begin(None) as session:
            recorded = session.scalar(
                select(SittingRow.id).filter_by(study=self._study, token=new.token)
            )
            if recorded is not None:
                return recorded
            _refuse_several_hosts(session, new.owner)
            row = session.merge(new)  # a copy, for the next attempt needs one of its own
            session.flush()
            return row.id

    @patient
    def record_sign_of_life(
        self, sitting_id: int, state: WorkerState | None = None, *, has_ended: bool = False
    ) -> None:
        """Record that the worker of a sitting is still there, and what it does.

        Args:
            sitting_id: Of this study; nothing happens if there is none of this id.
            state: What it does; None leaves what it said before.
            has_ended: Whether this is its last sign. A sitting stays ended.
        """
        values: dict[str, Any] = {"seen_at_seconds": database_seconds()}
        if state is not None:
            values["payload"] = encode(state)
        if has_ended:
            values["ended_at_seconds"] = database_seconds()
        with self._storage.begin_write() as session, session.begin():
            session.execute(
                update(SittingRow).filter_by(study=self._study, id=sitting_id).values(**values)
            )

    @patient
    def set_adapter(self, measurement_id: int, adapter: str | None) -> None:
        """Record where the adapter of a measurement lies now; None when it was removed.

        It needs no lease: adapters come and go with the front, after their trials have ended.
        """
        with self._storage.begin_write() as session, session.begin():
            session.execute(
                update(MeasurementRow)
                .filter_by(study=self._study, id=measurement_id)
                .values(adapter=adapter)
            )

    @contextmanager
    def _begin(self, lease: Lease | None) -> Iterator[Session]:
        with self._storage.begin_write() as session, session.begin():
            if lease is None:
                # Writers about the base wait for each other here; about a trial, at its lease.
                if session.get(StudyRow, self._study, with_for_update=True) is None:
                    raise StudyNotFound(f"study: {self._study!r} has no record; create it first")
            elif lease.study != self._study:
                raise ValueError(f"lease: it is for study {lease.study!r}, not {self._study!r}")
            else:
                check_lease(session, lease)
            yield session

    def _compare_fingerprints(self, recorded: Mapping[str, str], now: Mapping[str, str]) -> None:
        differences = [
            f"{part} was {recorded.get(part, 'absent')}, now {now.get(part, 'absent')}"
            for part in sorted({*recorded, *now})
            if recorded.get(part) != now.get(part)
        ]
        if differences:
            raise FingerprintMismatch(
                f"study: {self._study!r} exists and differs ({'; '.join(differences)}); "
                "undo the change, or choose another name"
            )

    def _insert_answers(
        self, session: Session, measurement_id: int, verdicts: Sequence[Verdict]
    ) -> None:
        if not verdicts:
            return
        digests = [_digest(verdict.answer.prompt) for verdict in verdicts]
        prompts = {
            digest: verdict.answer.prompt
            for digest, verdict in zip(digests, verdicts, strict=True)
        }
        ids = self._insert_prompts(session, prompts)
        session.execute(
            insert(AnswerRow),
            [
                {
                    "measurement_id": measurement_id,
                    "position": position,
                    "prompt_id": ids[digest],
                    # PostgreSQL's texts cannot hold the character that ends C's.
                    "text": verdict.answer.text.replace("\x00", "\ufffd"),
                    "tokens": verdict.answer.tokens,
                    "label": verdict.label,
                    "judge": verdict.judge,
                }
                for position, (digest, verdict) in enumerate(zip(digests, verdicts, strict=True))
            ],
        )

    def _insert_prompts(self, session: Session, prompts: Mapping[str, Prompt]) -> dict[str, int]:
        """Return the ids of prompts by their digests, inserting those the study lacks."""
        query = select(PromptRow.digest, PromptRow.id).filter_by(study=self._study)
        ids = {digest: id_ for digest, id_ in session.execute(query)}
        missing = [
            self._describe_prompt(digest, prompt)
            for digest, prompt in prompts.items()
            if digest not in ids
        ]
        if missing:
            insert_unless_there(session, PromptRow, missing)
            ids = {digest: id_ for digest, id_ in session.execute(query)}
        return ids

    def _describe_prompt(self, digest: str, prompt: Prompt) -> dict[str, Any]:
        return {
            "study": self._study,
            "digest": digest,
            "text": prompt.text,
            "style": prompt.style,
            "phrasing": prompt.phrasing,
            "subject": prompt.subject,
            "question": prompt.question,
            "accepted": json.dumps(prompt.accepted, ensure_ascii=False),
            "templated": prompt.templated,
            "ring": prompt.ring,
        }


def _refuse_several_hosts(session: Session, owner: str) -> None:
    """Raise `StorageError` if another host works on this database and that cannot go well."""
    if session.get_bind().dialect.name != "sqlite":
        return
    seen_seconds_ago = database_seconds() - SittingRow.seen_at_seconds
    alive = session.execute(
        select(SittingRow.owner, seen_seconds_ago)
        .where(SittingRow.ended_at_seconds.is_(None), seen_seconds_ago < _ALIVE_SECONDS)
        .order_by(SittingRow.id)
    )
    for other, seconds in alive:
        if host_of(other) != host_of(owner):
            raise StorageError(
                f"storage: a worker on host {host_of(other)} uses this SQLite database (seen "
                f"{seconds:.0f} seconds ago), and {host_of(owner)} cannot use it at the same "
                "time, for its locks do not reach from one machine to another; use PostgreSQL "
                "for several machines, or, if that worker is gone, wait until it was last seen "
                f"{_ALIVE_SECONDS} seconds ago"
            )


@lru_cache(maxsize=10_000)
def _digest(prompt: Prompt) -> str:
    """Return a digest of all that is in a prompt; the same ones are asked again and again."""
    return text_digest(encode(prompt))
