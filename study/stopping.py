"""Says when a study may stop early: when its trials have brought nothing for a while."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

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
    ended = [trial for trial in trials if trial.state.is_finished()]
    # By number where they ended at the same moment.
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    if len(ended) < patience:
        return False
    now = goal.reached(ended, reference)
    return now > 0 and now == goal.reached(ended[:-patience], reference)
