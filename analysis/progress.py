"""Follows how a study's front grew with the tokens that were trained."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.points import Reference, study_points
from data.front import hypervolume, non_dominated
from storage.records import StudyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The front's state once `trained_tokens` tokens had been trained in all trials together.

    `share` is the hypervolume over the reference point, divided by that of a perfect adapter
    (recall 1, knowledge loss 0): 0 to 1, higher is better.
    """

    trained_tokens: int
    share: float


def follow_hypervolume(record: StudyRecord, reference: Reference) -> tuple[Progress, ...]:
    """Return the front's growth, one step for each measured point in the order of recording.

    Tokens count up to each trial's last measurement; what a failed trial trained after that is not
    in them. Empty without points, and where the base is so good that nothing can beat it.
    """
    recorded_at = {
        kept.id: kept.recorded_at for trial in record.trials for kept in trial.measurements
    }
    corner = (reference.recall, reference.knowledge_loss)
    possible = (1 - reference.recall) * reference.knowledge_loss
    if possible <= 0:
        return ()
    trained: dict[int, int] = {}
    reached: list[tuple[float, float]] = []
    steps: list[Progress] = []
    for point in sorted(
        study_points(record),
        key=lambda point: (recorded_at[point.measurement_id], point.measurement_id),
    ):
        trained[point.trial] = point.measurement.trained_tokens
        reached.append((point.recall, point.knowledge_loss))
        reached = [reached[i] for i in non_dominated(reached)]  # the others rule nothing more
        steps.append(
            Progress(
                trained_tokens=sum(trained.values()),
                share=hypervolume(reached, corner) / possible,
            )
        )
    return tuple(steps)
