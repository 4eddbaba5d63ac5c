"""How a study stands while it runs: its workers, their trials, rates, and the time left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.points import Point, Reference, front_points, recommend, study_points
from storage.records import LeaseRecord, SittingRecord, StudyRecord, TrialState, WorkerState

# A worker that has given no sign of life for so long is not counted as being there.
LONGEST_SILENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker that is at a study; `state` is what it said last, `silent_seconds` ago.

    `owner` is `host:process:boot`. `trials` are the numbers of those it runs.
    """

    owner: str
    device: str
    slots: int
    trials: tuple[int, ...]
    state: WorkerState | None
    silent_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Return how many tokens a second it trains while it trains; None before the first."""
        if self.state is None or self.state.training_seconds <= 0:
            return None
        return self.state.trained_tokens / self.state.training_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStatus:
    """A study's trials by state, its workers, and what can be said of its end.

    `total` is how many trials it asks in all. `trials_per_hour` counts those that ended since the
    first of the present workers began; it and `seconds_left` are None while there is none.
    `best` is the member of the front that would be recommended now.
    """

    study: str
    total: int
    counts: dict[TrialState, int]
    workers: tuple[WorkerStatus, ...]
    trials_per_hour: float | None
    seconds_left: float | None
    best: Point | None

    @property
    def ended(self) -> int:
        """Return how many trials have ended."""
        return sum(count for state, count in self.counts.items() if state != "running")


def is_there(sitting: SittingRecord, now_seconds: float) -> bool:
    """Return whether the worker of a sitting has not left and was seen a short while ago."""
    silence = now_seconds - sitting.seen_at_seconds
    return sitting.ended_at_seconds is None and silence <= LONGEST_SILENCE_SECONDS


def study_status(
    record: StudyRecord,
    sittings: Sequence[SittingRecord],
    leases: Sequence[LeaseRecord],
    *,
    total: int,
    reference: Reference,
    now_seconds: float,
) -> StudyStatus:
    """Return how a study stands.

    Args:
        record: The study.
        sittings: All of its workers' sittings.
        leases: Who holds which trial.
        total: How many trials it asks in all.
        reference: What a point must beat to be the best.
        now_seconds: The time by the database's clock.
    """
    present = [sitting for sitting in sittings if is_there(sitting, now_seconds)]
    states = Counter(trial.state for trial in record.trials)
    running = {trial.number for trial in record.trials if trial.state == "running"}
    rate = _trials_per_hour(record, present, now_seconds)
    ended = len(record.trials) - states["running"]
    return StudyStatus(
        study=record.name,
        total=total,
        counts={state: states[state] for state in ("complete", "pruned", "failed", "running")},
        workers=tuple(
            WorkerStatus(
                owner=sitting.owner,
                device=sitting.device,
                slots=sitting.slots,
                trials=tuple(
                    sorted(
                        lease.trial
                        for lease in leases
                        if lease.owner == sitting.owner and lease.trial in running
                    )
                ),
                state=sitting.state,
                silent_seconds=max(0.0, now_seconds - sitting.seen_at_seconds),
            )
            for sitting in present
        ),
        trials_per_hour=rate,
        seconds_left=max(0, total - ended) / rate * 3600 if rate else None,
        best=recommend(front_points(study_points(record), reference)),
    )


def _trials_per_hour(
    record: StudyRecord, present: Sequence[SittingRecord], now_seconds: float
) -> float | None:
    if not present:
        return None
    began = min(sitting.began_at_seconds for sitting in present)
    ended = sum(
        trial.state != "running"
        and bool(trial.searched)
        and trial.searched[-1].recorded_at.timestamp() >= began
        for trial in record.trials
    )
    return ended / (now_seconds - began) * 3600 if ended and now_seconds > began else None
