"""Answers "can LoRA teach these facts?" in one plain sentence with its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.points import ACCEPTED_KNOWLEDGE_LOSS, TAUGHT_RECALL, Point
from analysis.wording import say_counted, say_estimate, say_estimate_in_words, say_share
from data.facts import Fact
from data.measurements import Estimate
from storage.records import StudyRecord

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
    """The study's answer: its class, the sentence, and whether rehearsal made a difference."""

    answer: Answer
    sentence: str
    rehearsal: str


def conclude(
    record: StudyRecord,
    subject: Subject,
    *,
    points: Sequence[Point],
    recommended: Point | None,
    best_with_rehearsal: Point | None,
    best_without_rehearsal: Point | None,
) -> Conclusion:
    """Return the study's answer.

    *Yes*: the recommended member has a recall of at least 80 % at a knowledge loss of at most
    10 %. *Partly*: it does not, but its recall interval lies above the base's recall. *No*: trials
    were measured and neither holds. *Already known*: there was nothing new to teach. *Cannot
    tell*: nothing was measured, or trials that may still do better are running.
    """
    answer, sentence = _answer(record, subject, points, recommended)
    return Conclusion(
        answer=answer,
        sentence=sentence,
        rehearsal=_compare_rehearsal(best_with_rehearsal, best_without_rehearsal),
    )


def _answer(
    record: StudyRecord, subject: Subject, points: Sequence[Point], recommended: Point | None
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
        figures = _describe(recommended, len(subject.new))
        if (
            recommended.recall >= TAUGHT_RECALL
            and recommended.knowledge_loss <= ACCEPTED_KNOWLEDGE_LOSS
        ):
            return "yes", f"Yes. {figures}"
        if _lies_above(recommended.measurement.recall, record.base.measurement.recall):
            missed = (
                "the recall stays below 80 %"
                if recommended.recall < TAUGHT_RECALL
                else "the loss is above 10 %"
            )
            return "partly", f"Partly: {missed}. {figures}"
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
        f"{_describe(best, len(subject.new))} Untouched, the model answers "
        f"{say_estimate(record.base.measurement.recall)}."
    )


def _describe(point: Point, new_facts: int) -> str:
    loss = say_estimate(point.measurement.knowledge_loss)
    facts = "the new fact" if new_facts == 1 else f"the {new_facts} new facts"
    return (
        f"Trial {point.trial} after {say_counted(point.epoch, 'epoch')} answers "
        f"{say_estimate_in_words(point.measurement.recall)} of novel questions about "
        f"{facts} right; of what the model knew it now gets {loss} wrong."
    )


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
