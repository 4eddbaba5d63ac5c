"""Adds up what the trials of a study cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from storage.records import StudyRecord, TrialRecord, TrialState


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Sums over `trials` ended trials; trials that ran side by side each count their seconds."""

    trials: int
    trained_tokens: int
    generated_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCosts:
    """The sums over all ended trials, and apart by how they ended."""

    total: Total
    by_state: Mapping[TrialState, Total]


def add_costs(record: StudyRecord) -> StudyCosts:
    """Return the costs of the ended trials; a running one has none yet. Zeros without trials."""
    ended = [trial for trial in record.trials if trial.costs is not None]
    states: tuple[TrialState, ...] = ("complete", "pruned", "failed")
    return StudyCosts(
        total=_add(ended),
        by_state={
            state: _add(trial for trial in ended if trial.state == state) for state in states
        },
    )


def _add(trials: Iterable[TrialRecord]) -> Total:
    costs = [trial.costs for trial in trials if trial.costs is not None]
    return Total(
        trials=len(costs),
        trained_tokens=sum(cost.trained_tokens for cost in costs),
        generated_tokens=sum(cost.generated_tokens for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
    )
