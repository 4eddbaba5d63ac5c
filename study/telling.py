"""Tells Optuna how trials ended, once and for all."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from storage.records import Ending, TrialRecord
from study.goal import Goal


def tell_trial(
    study: optuna.Study, number: int, state: Ending, values: Sequence[float] | None
) -> None:
    """Tell how a trial ended; one that was told already stays as it is.

    That happens where a reply of the database was lost, or where somebody told it by hand.
    """
    match state:
        case "complete":
            study.tell(number, values=values, skip_if_finished=True)
        case "pruned":
            study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        case "failed":
            study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def tell_recorded(study: optuna.Study, record: TrialRecord, goal: Goal) -> None:
    """Tell a trial whose end was recorded, but not told before its worker died.

    Raises:
        ValueError: If its record says that it still runs.
    """
    if record.state == "running":
        raise ValueError(f"state: trial {record.number} has not ended")
    values = None
    if record.state == "complete":
        last = [m.measurement for m in record.measurements if m.purpose == "final"]
        values = goal.values_of(next(m for m in last if m.sampling == record.sampling))
    tell_trial(study, record.number, record.state, values)
