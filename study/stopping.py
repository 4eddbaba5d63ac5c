"""Says when a study should stop early: when its trials bring nothing, or fail one by one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from optuna.trial import FrozenTrial, TrialState

from analysis.points import Reference
from study.goal import Goal


def is_flat(
    trials: Sequence[FrozenTrial], goal: Goal, reference: Reference, patience: int
) -> bool:
    """Return whether the last `patience` trials to end left what was reached as it was.

    That is the hypervolume, or the best value of a study with one objective. Pruned and failed
    trials count as trials that added nothing. False while fewer have ended, and while none has
    beaten the reference.

    Args:
        trials: The asked ones of a study; those that have not ended are ignored.
        goal: What the study optimises.
        reference: The point that trials must beat.
        patience: How many trials.
    """
    ended = _in_order_of_ending(trials)
    if len(ended) < patience:
        return False
    now = goal.reached(ended, reference)
    return now > 0 and now == goal.reached(ended[:-patience], reference)


def failures_in_a_row(trials: Sequence[FrozenTrial], *, since: datetime) -> list[FrozenTrial]:
    """Return the trials that failed last, in order, with none between them that did not.

    Args:
        trials: The asked ones of a study; those that have not ended are ignored.
        since: Trials that ended before are ignored as well, for their cause may be mended.
    """
    failed: list[FrozenTrial] = []
    for trial in reversed(_in_order_of_ending(trials)):
        ended_at = trial.datetime_complete
        if trial.state != TrialState.FAIL or ended_at is None or ended_at < since:
            break
        failed.insert(0, trial)
    return failed


def _in_order_of_ending(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    ended = [trial for trial in trials if trial.state.is_finished()]
    # By number where they ended at the same moment.
    return sorted(ended, key=lambda trial: (trial.datetime_complete, trial.number))
