"""What a study found, worked out once and shown by the report, RESULTS.md and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from analysis.confirmation import (
    Confirmation,
    RepeatKey,
    confirmation_of,
    recall_on,
    say_shrinkage,
    yardstick_of,
)
from analysis.points import Point, Reference, front_points, recommend, study_points
from analysis.verdict import Conclusion, Subject, conclude
from analysis.wording import say_estimate
from data.agreement import Agreement
from data.measurements import NOT_MEASURED, AdapterCost, Estimate, Measurement
from storage.records import SittingRecord, StudyRecord, TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A study with its points, its front, the recommended member and the answer in words.

    `front_with_rehearsal` and `front_without_rehearsal` are the fronts that the study would have
    had with only those trials; they may hold points that the whole front does not. `agreement` is
    that of the study's judge with people about answers of this study, if it was measured;
    `recalls_together` are the recalls of repeated recipes over all seeds' verdicts at once.
    `adapter_costs` are what members of the front take, `sittings` those of all workers.
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
    agreement: Agreement | None = None
    recalls_together: Mapping[RepeatKey, Estimate] = field(default_factory=dict)
    adapter_costs: tuple[AdapterCost, ...] = ()
    sittings: tuple[SittingRecord, ...] = ()

    @property
    def base(self) -> Measurement | None:
        """Return the untouched model's greedy measurement, or None before it was made."""
        return self.record.base.measurement if self.record.base else None

    @property
    def members_to_confirm(self) -> tuple[Point, ...]:
        """Return the recommended member and the best with and without rehearsal: at most 3."""
        candidates = (
            self.recommended,
            recommend(self.front_with_rehearsal),
            recommend(self.front_without_rehearsal),
        )
        members = {(p.trial, p.epoch, p.sampling): p for p in candidates if p is not None}
        return tuple(members.values())

    def confirmation_of(self, point: Point) -> Confirmation:
        """Return what became of a point's recipe under fresh seeds."""
        return confirmation_of(self.record, point, self.recalls_together)

    def are_repeated(self, seeds: int) -> bool:
        """Return whether every member to confirm was trained with so many fresh seeds."""
        return all(self.confirmation_of(point).seeds >= seeds for point in self.members_to_confirm)

    @property
    def yardstick(self) -> Confirmation:
        """Return what the webui's recipe of June 2023 came to; of no seeds if it was not tried."""
        return yardstick_of(self.record)

    @property
    def asked_apart(self) -> Measurement | None:
        """Return the recommended member's measurement with the most phrasings.

        That is the one made after the search, test wordings included, or before it the one that
        the search saw.
        """
        return None if self.recommended is None else self.asked_apart_of(self.recommended)

    def asked_apart_of(self, point: Point) -> Measurement:
        """Return a point's measurement with the most phrasings, as `asked_apart` says."""
        return next(
            (
                kept.measurement
                for trial in self.record.trials
                if trial.number == point.trial
                for kept in trial.measurements
                if kept.purpose == "confirm" and kept.measurement.epoch == point.epoch
            ),
            point.measurement,
        )

    @property
    def kept_aside(self) -> Estimate:
        """Return the recommended member's recall on the test wordings, which no search used."""
        return recall_on(self.asked_apart, "test") if self.asked_apart else NOT_MEASURED

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
        asked = (
            f"{chosen}; asked afterwards with wordings that the search never used, it answers "
            f"{say_estimate(self.kept_aside)} right."
        )
        confirmation = self.confirmation_of(self.recommended)
        if not confirmation.seeds:
            return f"{asked} It was not trained again with fresh seeds."
        return f"{asked} {say_shrinkage(self.recommended, confirmation)}"

    def trials_in(self, state: str) -> tuple[TrialRecord, ...]:
        """Return the trials that are in a state, in order of their numbers."""
        return tuple(trial for trial in self.record.trials if trial.state == state)


def find(
    record: StudyRecord,
    subject: Subject,
    reference: Reference,
    agreement: Agreement | None = None,
    recalls_together: Mapping[RepeatKey, Estimate] | None = None,
    adapter_costs: Sequence[AdapterCost] = (),
    sittings: Sequence[SittingRecord] = (),
) -> Findings:
    """Return what a study found, also when it has no trials or is not finished."""
    points = study_points(record)
    with_rehearsal = _front(points, reference, rehearses=True)
    without_rehearsal = _front(points, reference, rehearses=False)
    front = front_points(points, reference)
    recommended = recommend(front)
    together = recalls_together or {}
    confirmation = None
    if recommended is not None:
        confirmation = confirmation_of(record, recommended, together)
    return Findings(
        record=record,
        subject=subject,
        reference=reference,
        points=points,
        front=front,
        front_with_rehearsal=with_rehearsal,
        front_without_rehearsal=without_rehearsal,
        recommended=recommended,
        agreement=agreement,
        recalls_together=together,
        adapter_costs=tuple(adapter_costs),
        sittings=tuple(sittings),
        conclusion=conclude(
            record,
            subject,
            points=points,
            recommended=recommended,
            confirmation=confirmation,
            best_with_rehearsal=recommend(with_rehearsal),
            best_without_rehearsal=recommend(without_rehearsal),
        ),
    )


def _front(points: Sequence[Point], reference: Reference, *, rehearses: bool) -> tuple[Point, ...]:
    return front_points([point for point in points if point.rehearses == rehearses], reference)
