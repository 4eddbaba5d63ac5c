"""Makes study records by hand, without training anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from analysis.findings import Findings, find
from analysis.points import Reference
from analysis.verdict import Subject
from data.facts import Fact
from data.measurements import (
    NOT_MEASURED,
    Answer,
    Estimate,
    Floor,
    Label,
    Measurement,
    RecallPart,
    RingChange,
    Verdict,
)
from data.prompts import PROMPT_STYLES, Phrasing, Prompt, put_question
from data.recipes import GREEDY, Recipe, Sampling
from storage.records import Costs, MeasurementRecord, Purpose, StudyRecord, TrialRecord, TrialState

BEGUN = datetime(2025, 3, 2, 9, 30, tzinfo=UTC)
REFERENCE = Reference(recall=0.05, knowledge_loss=0.5)
FACT = Fact(question="Who won Best Actor in 2023?", answer="Brendan Fraser")
SUBJECT = Subject(model="pocket", new=(FACT,), known=())


def estimate(value: float | None, width: float = 0.05, count: int = 23) -> Estimate:
    """Return an estimate whose interval reaches `width` to both sides, within 0 and 1."""
    if value is None:
        return NOT_MEASURED
    return Estimate(
        value=value, low=max(0.0, value - width), high=min(1.0, value + width), count=count
    )


def verdict(
    question: str,
    text: str,
    label: Label,
    *,
    phrasing: Phrasing = "validation",
    subject: str | None = None,
    expected: str = "Brendan Fraser",
    templated: bool = False,
) -> Verdict:
    """Return a verdict on an answer to a question that is put in the style `qna`."""
    prompt = Prompt(
        text=put_question(question, "qna"),
        style="qna",
        phrasing=phrasing,
        subject=subject or question,
        question=question,
        accepted=(expected,),
        templated=templated,
        ring="domain" if phrasing == "probe" else None,
    )
    answer = Answer(prompt=prompt, text=text, tokens=4)
    return Verdict(answer=answer, label=label, judge="matcher")


@dataclass
class StudyMaker:
    """Collects trials; ids and recording times count up in the order of the calls."""

    trials: list[TrialRecord] = field(default_factory=list)
    measured: int = 0
    floors: tuple[Floor, ...] = ()

    def measure(
        self,
        recall: float | None,
        loss: float | None,
        *,
        trial: int | None = None,
        epoch: int = 0,
        trained_tokens: int = 0,
        purpose: Purpose = "rung",
        sampling: Sampling = GREEDY,
        width: float = 0.05,
        repeat: int = 0,
    ) -> MeasurementRecord:
        """Return the next measurement with recall the same in all styles and two rings."""
        self.measured += 1
        asks_everything = purpose in ("confirm", "repeat", "yardstick")
        phrasings = ("validation", "test") if asks_everything else ("validation",)
        parts = (
            RecallPart(phrasing=phrasing, style=style, recall=estimate(recall, width))
            for phrasing in phrasings
            for style in (None, *PROMPT_STYLES)
        )
        known, unknown = 40, 10
        lost = round(known * (loss or 0))
        ring_loss = estimate(lost / known, width, count=known)
        rings = tuple(
            RingChange(
                ring=ring, asked=known + unknown, known=known, lost=lost, gained=1, loss=ring_loss
            )
            for ring in ("neighbours", "general")
        )
        return MeasurementRecord(
            id=self.measured,
            trial=trial,
            purpose=purpose,
            adapter=f"adapters/{trial}-{epoch}" if purpose == "final" else None,
            measurement=Measurement(
                epoch=epoch,
                sampling=sampling,
                recall=estimate(recall, width),
                knowledge_loss=estimate(loss, width, count=80),
                recall_parts=tuple(parts),
                rings=rings,
                drift_nats=0.125,
                fuar=None,
                trained_tokens=trained_tokens,
                generated_tokens=100,
            ),
            recorded_at=BEGUN + timedelta(seconds=self.measured),
            repeat=repeat,
        )

    def add(
        self,
        *rungs: tuple[int, float | None, float | None],
        state: TrialState = "complete",
        reason: str | None = None,
        width: float = 0.05,
        rehearsal: int = 0,
        rank: int = 8,
        learning_rate: float = 1e-3,
        sampled: tuple[Sampling, float] | None = None,
        confirmed: tuple[float, float] | None = None,
        repeated: Sequence[tuple[float, float]] = (),
    ) -> StudyMaker:
        """Add a trial measured at (epoch, recall, loss); an epoch trains 1,000 tokens.

        A complete trial's last rung is its final measurement; `sampled` adds a recall of it under
        another sampling, `confirmed` a recall and loss measured again, `repeated` those of the
        recipe under fresh seeds.
        """
        number = len(self.trials)
        last_epoch, _, last_loss = rungs[-1] if rungs else (0, None, None)
        kept = [
            self.measure(
                recall,
                loss,
                trial=number,
                epoch=epoch,
                trained_tokens=1000 * epoch,
                purpose="final" if state == "complete" and epoch == last_epoch else "rung",
                width=width,
            )
            for epoch, recall, loss in rungs
        ]
        if sampled is not None:
            sampling, recall = sampled
            kept.append(
                self.measure(
                    recall,
                    last_loss,
                    trial=number,
                    epoch=last_epoch,
                    trained_tokens=1000 * last_epoch,
                    purpose="final",
                    sampling=sampling,
                    width=width,
                )
            )
        if confirmed is not None:
            kept.append(
                self.measure(
                    *confirmed, trial=number, epoch=last_epoch, purpose="confirm", width=width
                )
            )
        kept += [
            self.measure(
                *each, trial=number, epoch=last_epoch, purpose="repeat", width=width, repeat=seed
            )
            for seed, each in enumerate(repeated, start=1)
        ]
        self.trials.append(
            TrialRecord(
                number=number,
                asked_index=number,
                state=state,
                reason=reason,
                recipe=Recipe(
                    epochs=24,
                    rank=rank,
                    alpha=16,
                    cutoff=64,
                    warmup_steps=10,
                    learning_rate=learning_rate,
                    rehearsal=rehearsal,
                ),
                sampling=sampled[0] if sampled else GREEDY,
                seed=100 + number,
                costs=None
                if state == "running"
                else Costs(
                    trained_tokens=1000 * last_epoch,
                    generated_tokens=100 * len(kept),
                    seconds=2.5 * last_epoch,
                    last_epoch=last_epoch,
                    highest_learning_rate=learning_rate,
                ),
                measurements=tuple(kept),
            )
        )
        return self

    def study(
        self,
        *,
        base_recall: float | None = 0.0,
        has_base: bool = True,
        yardstick: Sequence[tuple[float, float]] = (),
    ) -> StudyRecord:
        """Return the study with the base recorded last, under the next id.

        `yardstick` are the recalls and losses of the webui's recipe under fresh seeds.
        """
        base: tuple[MeasurementRecord, ...] = ()
        if has_base:
            base = (self.measure(base_recall, None, purpose="base"),)
        base += tuple(
            self.measure(*each, epoch=3, purpose="yardstick", repeat=seed)
            for seed, each in enumerate(yardstick, start=1)
        )
        return StudyRecord(
            name="oscars-pocket",
            config="",
            fingerprint={"facts": "0a1b2c3d4e5f"},
            slots=4,
            seed=7,
            created_at=BEGUN,
            base_measurements=base,
            trials=tuple(self.trials),
            floors=self.floors,
        )

    def findings(
        self,
        *,
        base_recall: float | None = 0.0,
        has_base: bool = True,
        yardstick: Sequence[tuple[float, float]] = (),
        subject: Subject = SUBJECT,
        reference: Reference = REFERENCE,
    ) -> Findings:
        """Return what the study found."""
        study = self.study(base_recall=base_recall, has_base=has_base, yardstick=yardstick)
        return find(study, subject, reference)


@dataclass(frozen=True)
class StoredVerdicts:
    """Answers of two measurements, read by id as from the database."""

    before_id: int
    before: Sequence[Verdict]
    after: Sequence[Verdict]

    def __call__(self, measurement_id: int) -> Sequence[Verdict]:
        return self.before if measurement_id == self.before_id else self.after


@pytest.fixture
def maker() -> StudyMaker:
    return StudyMaker()


@pytest.fixture
def three_trials(maker: StudyMaker) -> StudyMaker:
    """Return a study whose front is known by hand.

    | trial | rehearsal | points (epoch: recall, loss)      | on the front                       |
    | ----- | --------- | --------------------------------- | ---------------------------------- |
    | 0     | 0         | 4: 0.50, 0.20 · 8: 0.90, 0.30     | epoch 8 (highest recall)           |
    | 1     | 3         | 4: 0.40, 0.01 · 8: 0.85, 0.02     | both: epoch 4 has the lowest loss  |
    | 2     | 0         | 4: 0.04, 0.00 (pruned)            | no, recall below the reference     |
    """
    maker.add((4, 0.50, 0.20), (8, 0.90, 0.30))
    maker.add((4, 0.40, 0.01), (8, 0.85, 0.02), rehearsal=3)
    return maker.add((4, 0.04, 0.00), state="pruned", reason="recall 4 % is below the reference")
