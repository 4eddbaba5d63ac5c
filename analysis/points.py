"""The measured points of a study, the front among them, and the one that is recommended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.front import non_dominated
from data.measurements import Measurement
from data.recipes import GREEDY, Recipe, Sampling
from storage.records import StudyRecord, TrialState

# From this recall on, and up to this knowledge loss, the facts count as taught.
TAUGHT_RECALL = 0.80
ACCEPTED_KNOWLEDGE_LOSS = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The worst values that count: a recall and a knowledge loss that a point has to beat."""

    recall: float
    knowledge_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One adapter at one epoch under one sampling, with both objectives measured.

    `recipe.epochs` is the measured epoch, so that training the recipe again gives this adapter.
    `state` is the trial's, `adapter` the folder of its weights where they were kept.
    """

    trial: int
    epoch: int
    recipe: Recipe
    sampling: Sampling
    measurement: Measurement
    measurement_id: int
    adapter: str | None
    state: TrialState

    @property
    def recall(self) -> float:
        """Return the recall, higher is better."""
        return _measured(self.measurement.recall.value)

    @property
    def knowledge_loss(self) -> float:
        """Return the knowledge loss, lower is better."""
        return _measured(self.measurement.knowledge_loss.value)

    @property
    def rehearses(self) -> bool:
        """Return whether known facts were mixed into the training text."""
        return self.recipe.rehearsal > 0


def study_points(record: StudyRecord) -> tuple[Point, ...]:
    """Return every rung and final measurement of all trials, in order of trial and epoch.

    A rung is a true measurement of the same recipe with fewer epochs, so pruned, failed and
    running trials have points too. A measurement without a (finite) recall or loss is not a point.
    """
    return tuple(
        Point(
            trial=trial.number,
            epoch=kept.measurement.epoch,
            recipe=replace(trial.recipe, epochs=kept.measurement.epoch),
            sampling=kept.measurement.sampling,
            measurement=kept.measurement,
            measurement_id=kept.id,
            adapter=kept.adapter,
            state=trial.state,
        )
        for trial in record.trials
        for kept in trial.searched
        if _has_both(kept.measurement)
    )


def front_points(points: Sequence[Point], reference: Reference) -> tuple[Point, ...]:
    """Return the points that beat the reference in both objectives and are beaten by no other.

    Sorted by recall, highest first. Of points with equal values one is kept: the greedy one, then
    that of fewer trained tokens, then of the earlier trial. Empty when none beats the reference.
    """
    in_reach = sorted(
        (
            point
            for point in points
            if point.recall > reference.recall and point.knowledge_loss < reference.knowledge_loss
        ),
        key=lambda point: (
            point.sampling != GREEDY,
            point.measurement.trained_tokens,
            point.trial,
        ),
    )
    # Of equal points the first stands for all.
    values = [(point.recall, point.knowledge_loss) for point in in_reach]
    return tuple(in_reach[index] for index in non_dominated(values))


def may_join_front(
    measurement: Measurement, points: Sequence[Point], reference: Reference
) -> bool:
    """Return whether a measurement beats the reference and no point is better than it.

    One with the values of a point may take that point's place.
    """
    if not _has_both(measurement):
        return False
    recall = _measured(measurement.recall.value)
    loss = _measured(measurement.knowledge_loss.value)
    if recall <= reference.recall or loss >= reference.knowledge_loss:
        return False
    return not any(
        point.recall >= recall
        and point.knowledge_loss <= loss
        and (point.recall, point.knowledge_loss) != (recall, loss)
        for point in points
    )


def recommend(front: Sequence[Point]) -> Point | None:
    """Return the member of a front to take, or None when the front is empty.

    The rule: the one whose recall exceeds its knowledge loss by most, among the members with a
    recall of at least 80 % and a loss of at most 10 %; if there is none, among those that lose so
    little; if there is none, among all. Ties: the lower loss, then fewer trained tokens.
    """
    mild = [point for point in front if point.knowledge_loss <= ACCEPTED_KNOWLEDGE_LOSS]
    taught = [point for point in mild if point.recall >= TAUGHT_RECALL]
    return min(
        taught or mild or front,
        key=lambda point: (
            point.knowledge_loss - point.recall,
            point.knowledge_loss,
            point.measurement.trained_tokens,
        ),
        default=None,
    )


RECOMMENDATION_RULE = (
    "Recommended is the member of the front whose recall exceeds its knowledge loss by most, "
    "among those with a recall of at least 80 % and a loss of at most 10 %, if there are any."
)


def _has_both(measurement: Measurement) -> bool:
    return all(
        estimate.value is not None and math.isfinite(estimate.value)
        for estimate in (measurement.recall, measurement.knowledge_loss)
    )


def _measured(value: float | None) -> float:
    if value is None:
        raise ValueError("a point needs both objectives measured; see study_points")
    return value
