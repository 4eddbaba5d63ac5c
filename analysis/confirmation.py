"""What became of the chosen members and of the yardstick when trained with fresh seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from analysis.points import Point
from analysis.wording import say_counted, say_estimate, say_share
from data.intervals import pool_repeats
from data.measurements import NOT_MEASURED, Estimate, Measurement
from storage.records import MeasurementRecord, StudyRecord

RepeatKey = tuple[int, int, str]  # of a repeated recipe: trial, epoch and the sampling's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """The measurements of one recipe trained again, one per fresh seed; none is not confirmed.

    `together` is its recall on the test wordings over all seeds' verdicts at once, if they were
    read.
    """

    measurements: tuple[Measurement, ...]
    together: Estimate | None = None

    @property
    def seeds(self) -> int:
        """Return with how many fresh seeds it was trained."""
        return len(self.measurements)

    @property
    def recall(self) -> Estimate:
        """Return the mean recall on the test wordings over the seeds, higher is better."""
        return pool_repeats(self.recalls, together=self.together)

    @property
    def recalls(self) -> tuple[Estimate, ...]:
        """Return each seed's recall on the test wordings."""
        return tuple(recall_on(each, "test") for each in self.measurements)

    @property
    def recall_on_search_wordings(self) -> Estimate:
        """Return the mean recall on the wordings that the search used."""
        return pool_repeats([each.recall for each in self.measurements])

    @property
    def knowledge_loss(self) -> Estimate:
        """Return the mean knowledge loss over the seeds, lower is better."""
        return pool_repeats([each.knowledge_loss for each in self.measurements])


def confirmation_of(
    record: StudyRecord, point: Point, recalls_together: Mapping[RepeatKey, Estimate]
) -> Confirmation:
    """Return what became of a point's recipe under fresh seeds; of none if it was not repeated."""
    of_trial = next(trial for trial in record.trials if trial.number == point.trial)
    return _confirmation(
        (
            kept
            for kept in of_trial.measurements
            if kept.purpose == "repeat"
            and kept.measurement.epoch == point.epoch
            and kept.measurement.sampling == point.sampling
        ),
        recalls_together.get((point.trial, point.epoch, point.sampling.name)),
    )


def yardstick_of(record: StudyRecord) -> Confirmation:
    """Return what the webui's recipe of June 2023 came to; of no seeds if it was not trained."""
    return _confirmation(kept for kept in record.base_measurements if kept.purpose == "yardstick")


def say_shrinkage(point: Point, confirmation: Confirmation) -> str:
    """Return in words how a recipe's figure shrank from the search to fresh seeds and wordings."""
    recall, again = point.measurement.recall, confirmation.recall
    if recall.value is None or again.value is None:
        return ""
    values = sorted(each.value for each in confirmation.recalls if each.value is not None)
    spread = ""
    if values[0] < values[-1]:
        spread = f"; between {say_share(values[0])} and {say_share(values[-1])} by seed"
    return (
        f"Trained again with {say_counted(confirmation.seeds, 'fresh seed')}, the recipe answers "
        f"{say_estimate(again)} of those right{spread}. The search's "
        f"figure was {say_share(recall.value)}: {_say_shrinkage(recall.value - again.value)}."
    )


def _say_shrinkage(shrinkage: float) -> str:
    if round(shrinkage, 3) == 0:
        return "it did not shrink"
    return f"it {'shrank' if shrinkage > 0 else 'grew'} by {abs(100 * shrinkage):.1f} points"


def recall_on(measurement: Measurement, phrasing: str) -> Estimate:
    """Return the recall on one phrasing over all styles, or `NOT_MEASURED`."""
    return next(
        (
            part.recall
            for part in measurement.recall_parts
            if (part.phrasing, part.style) == (phrasing, None)
        ),
        NOT_MEASURED,
    )


def _confirmation(
    records: Iterable[MeasurementRecord], together: Estimate | None = None
) -> Confirmation:
    by_repeat = sorted(records, key=lambda kept: kept.repeat)
    return Confirmation(
        measurements=tuple(kept.measurement for kept in by_repeat), together=together
    )
