"""Judges the stored answers of a study again: nothing is trained, asked or changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.measurements import MEASUREMENT_VERSION, Measurement, Verdict
from data.recipes import GREEDY
from data.rescoring import rescore
from objectives.judges.base import Judge, judge_answers
from storage.database import StudyStorage
from storage.reader import read_verdicts
from storage.records import MeasurementRecord, StudyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejudged:
    """A recorded measurement and what it would be with another judge.

    `verdicts` are the new ones, in the order of those stored; `changed` of them have another
    label. `reproduces` says whether the stored verdicts give the recorded figures again, which
    they do unless the program scored otherwise then. Without `judged_probes` the answers to the
    probes are not stored, and the knowledge loss is the recorded one.
    """

    kept: MeasurementRecord
    measurement: Measurement
    verdicts: tuple[Verdict, ...]
    changed: int
    reproduces: bool
    judged_probes: bool


def judge_again(storage: StudyStorage, record: StudyRecord, judge: Judge) -> Iterator[Rejudged]:
    """Yield every measurement of a study whose answers are stored, judged again.

    The base comes first, then trial by trial; nothing is written. A study without a measured base
    has none, and measurements of another `MEASUREMENT_VERSION` are left out.

    Raises:
        JudgeUnreachable: If the judge gives no reply.
    """
    if record.base is None:
        return
    stored_base = read_verdicts(storage, record.base.id)
    base = _judge(judge, stored_base)
    for kept in record.measurements:
        if kept.measurement.version != MEASUREMENT_VERSION:
            continue
        stored = read_verdicts(storage, kept.id)
        if not stored:
            continue
        asked_probes = _who_was_asked_the_probes(kept, record.measurements)
        is_itself = asked_probes is not None and asked_probes.id == kept.id
        probes = stored
        if not is_itself:
            probes = () if asked_probes is None else read_verdicts(storage, asked_probes.id)
        again = rescore(kept.measurement, stored, base=stored_base, probes=probes)
        if again != kept.measurement and not is_itself:
            # The adapter's greedy answers of another time were not quite those of this one.
            probes = ()
            again = rescore(kept.measurement, stored, base=stored_base, probes=None)
        verdicts = _judge(judge, stored)
        judged_probes = verdicts if is_itself else _judge(judge, probes)
        yield Rejudged(
            kept=kept,
            measurement=rescore(kept.measurement, verdicts, base=base, probes=judged_probes),
            verdicts=verdicts,
            changed=sum(old.label != new.label for old, new in zip(stored, verdicts, strict=True)),
            reproduces=again == kept.measurement,
            judged_probes=any(each.answer.prompt.phrasing == "probe" for each in probes),
        )


def _judge(judge: Judge, verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    return judge_answers(judge, [verdict.answer for verdict in verdicts]) if verdicts else ()


def _who_was_asked_the_probes(
    kept: MeasurementRecord, others: Sequence[MeasurementRecord]
) -> MeasurementRecord | None:
    """Return the greedy measurement of the same adapter; with another sampling none is asked."""
    same_adapter = [
        other
        for other in others
        if (other.trial, other.measurement.epoch) == (kept.trial, kept.measurement.epoch)
        and other.repeat == kept.repeat
        # A repeat or a yardstick is an adapter of its own, all others are the trial's.
        and (other.purpose == kept.purpose or not (kept.repeat or other.repeat))
        and other.measurement.sampling == GREEDY
    ]
    # Itself, if it can be; else of the same sitting, if that can be.
    same_adapter.sort(key=lambda other: (other.id != kept.id, other.purpose != kept.purpose))
    return same_adapter[0] if same_adapter else None
