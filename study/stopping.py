"""Says when a study may stop early: when its front has not moved for a number of trials."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from analysis.points import Reference
from data.front import hypervolume


def is_flat(trials: Sequence[FrozenTrial], reference: Reference, patience: int) -> bool:
    """Return whether the last `patience` trials to end left the hypervolume as it was.

    Pruned and failed trials count as trials that added nothing. False while fewer have ended, and
    while none has beaten the reference.

    Args:
        trials: All of a study; those that have not ended are ignored.
        reference: The point that trials must beat.
        patience: How many trials.
    """
    ended = [trial for trial in trials if trial.state.is_finished()]
    # By number where they ended at the same moment.
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    if len(ended) < patience:
        return False
    box = reference.recall, reference.knowledge_loss

    def reached(some: Sequence[FrozenTrial]) -> float:
        points = [(t.values[0], t.values[1]) for t in some if t.values is not None]
        return hypervolume(points, box)

    now = reached(ended)
    return now > 0 and now == reached(ended[:-patience])
