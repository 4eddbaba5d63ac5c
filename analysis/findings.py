"""What a study found, worked out once and shown by the report, RESULTS.md and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.points import Point, Reference, front_points, recommend, study_points
from analysis.verdict import Conclusion, Subject, conclude
from analysis.wording import say_estimate
from data.measurements import NOT_MEASURED, Estimate, Measurement
from storage.records import StudyRecord, TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A study with its points, its front, the recommended member and the answer in words.

    `front_with_rehearsal` and `front_without_rehearsal` are the fronts that the study would have
    had with only those trials; they may hold points that the whole front does not.
    """

    record: StudyRecord
    subject: Subject
    reference: Reference
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    front_with_rehearsal: tuple[Point, ...]
    front_without_rehearsal: tuple[Point, ...]
    recommended: Point | None
    conclusion: Conclusion

    @property
    def base(self) -> Measurement | None:
        """Return the untouched model's greedy measurement, or None before it was made."""
        return self.record.base.measurement if self.record.base else None

    @property
    def asked_apart(self) -> Measurement | None:
        """Return the recommended member's measurement with the most phrasings.

        That is the one made after the search, test wordings included, or before it the one that
        the search saw.
        """
        if self.recommended is None:
            return None
        return next(
            (
                kept.measurement
                for trial in self.record.trials
                if trial.number == self.recommended.trial
                for kept in trial.measurements
                if kept.purpose == "confirm" and kept.measurement.epoch == self.recommended.epoch
            ),
            self.recommended.measurement,
        )

    @property
    def kept_aside(self) -> Estimate:
        """Return the recommended member's recall on the test wordings, which no search used."""
        parts = self.asked_apart.recall_parts if self.asked_apart else ()
        return next(
            (part.recall for part in parts if (part.phrasing, part.style) == ("test", None)),
            NOT_MEASURED,
        )

    @property
    def kept_aside_sentence(self) -> str:
        """Return how far the search's own figure can be trusted; empty without a front."""
        if self.recommended is None:
            return ""
        chosen = f"It was chosen as the best of {len(self.points)} measured points"
        if self.kept_aside.value is None:
            return (
                f"{chosen} and was not asked anything new since; its figures flatter it a little."
            )
        return (
            f"{chosen}; asked afterwards with wordings that the search never used, it answers "
            f"{say_estimate(self.kept_aside)} right. It was not trained again with fresh seeds."
        )

    def trials_in(self, state: str) -> tuple[TrialRecord, ...]:
        """Return the trials that are in a state, in order of their numbers."""
        return tuple(trial for trial in self.record.trials if trial.state == state)


def find(record: StudyRecord, subject: Subject, reference: Reference) -> Findings:
    """Return what a study found, also when it has no trials or is not finished."""
    points = study_points(record)
    with_rehearsal = _front(points, reference, rehearses=True)
    without_rehearsal = _front(points, reference, rehearses=False)
    front = front_points(points, reference)
    return Findings(
        record=record,
        subject=subject,
        reference=reference,
        points=points,
        front=front,
        front_with_rehearsal=with_rehearsal,
        front_without_rehearsal=without_rehearsal,
        recommended=recommend(front),
        conclusion=conclude(
            record,
            subject,
            points=points,
            recommended=recommend(front),
            best_with_rehearsal=recommend(with_rehearsal),
            best_without_rehearsal=recommend(without_rehearsal),
        ),
    )


def _front(points: Sequence[Point], reference: Reference, *, rehearses: bool) -> tuple[Point, ...]:
    return front_points([point for point in points if point.rehearses == rehearses], reference)
