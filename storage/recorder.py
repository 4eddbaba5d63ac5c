"""Writes a study's records: one transaction a call, and none for a trial whose lease is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from data.agreement import Agreement
from data.facts import text_digest
from data.measurements import Floor, Label, Measurement, Verdict
from data.prompts import Prompt
from data.recipes import Recipe, Sampling
from storage.database import StorageError, StudyNotFound, StudyStorage
from storage.encoding import encode, encode_purpose
from storage.inserting import insert_unless_there
from storage.leases import Lease, check_lease
from storage.records import Costs, Ending, Purpose
from storage.tables import (
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
            session.execute(insert_unless_there(session, StudyRow), values)
            row = session.get_one(StudyRow, self._study, with_for_update=True)
            recorded = {**json.loads(row.fingerprint), "seed": str(row.seed)}
            self._compare_fingerprints(recorded, {**fingerprint, "seed": str(seed)})
            row.config = config
            return row.slots

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
            verdicts: What it rests on, in any order; the order is kept.
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

    def begin_sitting(self, *, owner: str, device: str) -> int:
        """Record that a worker begins, and return the sitting's id.

        Raises:
            StudyNotFound: If the study has no record yet.
        """
        with self._begin(None) as session:
            row = SittingRow(study=self._study, owner=owner, device=device)
            session.add(row)
            session.flush()
            return row.id

    def prolong_sitting(self, sitting_id: int) -> None:
        """Record that the worker of a sitting is still there."""
        with self._storage.begin_write() as session, session.begin():
            session.execute(
                update(SittingRow)
                .filter_by(study=self._study, id=sitting_id)
                .values(seen_at_seconds=database_seconds())
            )

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
        digests = [text_digest(encode(verdict.answer.prompt)) for verdict in verdicts]
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
                    "text": verdict.answer.text,
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
            session.execute(insert_unless_there(session, PromptRow), missing)
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
