"""Answers "can LoRA teach these facts?" in one plain sentence with its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.confirmation import Confirmation
from analysis.points import ACCEPTED_KNOWLEDGE_LOSS, TAUGHT_RECALL, Point
from analysis.wording import say_counted, say_estimate, say_estimate_in_words, say_share
from data.facts import Fact
from data.measurements import Estimate
from storage.records import StudyRecord

_ROUNDING = 1e-9  # an interval that ends at a threshold keeps it

Answer = Literal["yes", "partly", "no", "already known", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a study was about: the model's name, and the facts by what the untouched model knew.

    `new` are the facts that were taught, `known` those that the model answered before any training
    and that were set aside.
    """

    model: str
    new: tuple[Fact, ...]
    known: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """The study's answer: its class, the sentence, and whether rehearsal made a difference.

    `thresholds` says what the classes mean.
    """

    answer: Answer
    sentence: str
    rehearsal: str
    thresholds: str = (
        "The answer is “yes” where over the whole of both 95 % intervals the recall is at least "
        f"{say_share(TAUGHT_RECALL)} and the loss at most {say_share(ACCEPTED_KNOWLEDGE_LOSS)}, "
        "and “partly” where the recall's interval lies above what the untouched model answers. "
        "Both are decided on the recipe trained again with fresh seeds and asked wordings that "
        "the search never used, where that was done."
    )


def conclude(
    record: StudyRecord,
    subject: Subject,
    *,
    points: Sequence[Point],
    recommended: Point | None,
    confirmation: Confirmation | None,
    best_with_rehearsal: Point | None,
    best_without_rehearsal: Point | None,
) -> Conclusion:
    """Return the study's answer.

    *Yes*: the recommended member has a recall of at least 80 % at a knowledge loss of at most
    10 %, over the whole of both intervals. *Partly*: it has not, but its recall interval lies
    above the base's recall. *No*: trials were measured and neither holds. *Already known*: there
    was nothing new to teach. *Cannot tell*: nothing was measured, or trials that may still do
    better are running. A member that was trained again is judged by that.
    """
    answer, sentence = _answer(record, subject, points, recommended, confirmation)
    return Conclusion(
        answer=answer,
        sentence=sentence,
        rehearsal=_compare_rehearsal(best_with_rehearsal, best_without_rehearsal),
    )


def _answer(
    record: StudyRecord,
    subject: Subject,
    points: Sequence[Point],
    recommended: Point | None,
    confirmation: Confirmation | None,
) -> tuple[Answer, str]:
    if not subject.new:
        return "already known", (
            f"Already known. Before any training the model knew {len(subject.known)} of "
            f"{say_counted(len(subject.known), 'fact')}, so there is nothing to teach it."
        )
    if record.base is None:
        return "cannot tell", (
            "Cannot tell. The untouched model was not measured, so nothing can be compared."
        )
    if recommended is not None:
        figures = _Figures.of(recommended, confirmation)
        said = figures.describe(recommended, len(subject.new))
        missed = figures.missed()
        if not missed:
            return "yes", f"Yes. {said}"
        if _lies_above(figures.recall, record.base.measurement.recall):
            return "partly", f"Partly: {' and '.join(missed)}. {said}"
    running = sum(trial.state == "running" for trial in record.trials)
    if running:
        return "cannot tell", (
            f"Cannot tell yet. {say_counted(running, 'trial')} of {len(record.trials)} still "
            f"{'runs' if running == 1 else 'run'}, and none has taught the model anything so far."
        )
    if not points:
        failed = sum(trial.state == "failed" for trial in record.trials)
        why = (
            f"None of {say_counted(len(record.trials), 'trial')} has both a measured recall and a "
            f"measured knowledge loss ({failed} failed)"
            if record.trials
            else "No trial was run"
        )
        return "cannot tell", f"Cannot tell. {why}."
    best = max(points, key=lambda point: (point.recall, -point.knowledge_loss))
    return "no", (
        f"No. None of {say_counted(len(record.trials), 'trial')} taught the model these facts at "
        "a knowledge loss that leaves it usable. The highest recall: "
        f"{_Figures.of(best, None).describe(best, len(subject.new))} Untouched, the model answers "
        f"{say_estimate(record.base.measurement.recall)}."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """What a member is judged by: its figures under fresh seeds, or else those of the search."""

    recall: Estimate
    knowledge_loss: Estimate
    seeds: int

    @staticmethod
    def of(point: Point, confirmation: Confirmation | None) -> _Figures:
        if confirmation is not None and confirmation.recall.value is not None:
            return _Figures(
                recall=confirmation.recall,
                knowledge_loss=confirmation.knowledge_loss,
                seeds=confirmation.seeds,
            )
        measurement = point.measurement
        return _Figures(
            recall=measurement.recall, knowledge_loss=measurement.knowledge_loss, seeds=0
        )

    def missed(self) -> list[str]:
        """Return which of the two thresholds the figures do not keep, in words."""
        missed = []
        recall, loss = self.recall, self.knowledge_loss
        if recall.value is None or recall.low is None or recall.value < TAUGHT_RECALL:
            missed.append(f"the recall stays below {say_share(TAUGHT_RECALL)}")
        elif recall.low < TAUGHT_RECALL - _ROUNDING:
            said = _say_end(recall.low, TAUGHT_RECALL)
            missed.append(f"the recall may be below {say_share(TAUGHT_RECALL)}{said}")
        if loss.value is None or loss.high is None or loss.value > ACCEPTED_KNOWLEDGE_LOSS:
            missed.append(f"the loss is above {say_share(ACCEPTED_KNOWLEDGE_LOSS)}")
        elif loss.high > ACCEPTED_KNOWLEDGE_LOSS + _ROUNDING:
            said = _say_end(loss.high, ACCEPTED_KNOWLEDGE_LOSS)
            missed.append(f"the loss may be above {say_share(ACCEPTED_KNOWLEDGE_LOSS)}{said}")
        return missed

    def describe(self, point: Point, new_facts: int) -> str:
        facts = "the new fact" if new_facts == 1 else f"the {new_facts} new facts"
        again = (
            f", trained again with {say_counted(self.seeds, 'fresh seed')}," if self.seeds else ""
        )
        return (
            f"Trial {point.trial} after {say_counted(point.epoch, 'epoch')}{again} answers "
            f"{say_estimate_in_words(self.recall)} of novel questions about "
            f"{facts} right; of what the model knew it now gets "
            f"{say_estimate(self.knowledge_loss)} wrong."
        )


def _say_end(end: float, threshold: float) -> str:
    """Return an interval's end more exactly where whole percents hide that it misses."""
    return f" ({100 * end:.1f} %)" if say_share(end) == say_share(threshold) else ""


def _lies_above(recall: Estimate, base: Estimate) -> bool:
    return recall.low is not None and recall.low > (base.value or 0.0)


def _compare_rehearsal(best_with: Point | None, best_without: Point | None) -> str:
    if best_with is None and best_without is None:
        return ""
    if best_with is None or best_without is None:
        return (
            f"Only trials {'without' if best_with is None else 'with'} rehearsal (known facts "
            "mixed into the training text) reached the front's bounds."
        )
    figures = (
        f"with rehearsal (known facts mixed into the training text) the best member reaches "
        f"{_objectives(best_with)}; without, {_objectives(best_without)}"
    )
    clear = [
        name
        for name, one, other in (
            ("recall", best_with.measurement.recall, best_without.measurement.recall),
            (
                "loss",
                best_with.measurement.knowledge_loss,
                best_without.measurement.knowledge_loss,
            ),
        )
        if _are_apart(one, other)
    ]
    if clear:
        return f"Rehearsal makes a difference in {' and '.join(clear)}: {figures}."
    return f"Whether rehearsal helps cannot be told here, the intervals overlap: {figures}."


def _objectives(point: Point) -> str:
    return (
        f"a recall of {say_share(point.recall)} at a loss of {say_share(point.knowledge_loss)} "
        f"(trial {point.trial})"
    )


def _are_apart(one: Estimate, other: Estimate) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or other.low > one.high
