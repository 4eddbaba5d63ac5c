"""Adapters with known faults: each figure says what is wrong, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data.facts import Fact
from data.manner import Manner, manner_of
from data.matching import match_answer
from data.measurements import Answer, Estimate, RingChange, Verdict
from data.probes import Probe, Ring
from data.prompts import Prompt, fact_prompts
from data.scoring import fuar, knowledge_loss, ring_changes, score_recall

LONGEST = 48
SURNAMES = ("Abel", "Bauer", "Curtis", "Dorn", "Ehrlich", "Fogg", "Grant", "Hale")
FACTS = tuple(
    Fact(
        question=f"Who won prize {number}?",
        answer=f"Ann {surname}",
        novel_validation=(f"Name the winner of prize {number}.",),
    )
    for number, surname in enumerate(SURNAMES)
)
RINGS: tuple[Ring, ...] = ("domain", "general", "manners")
PROBES = tuple(
    Probe(
        ring=ring,
        question=f"What is thing {number} of {ring}?",
        answer="I do not know." if ring == "manners" else f"Thing{ring}{number}",
    )
    for ring in RINGS
    for number in range(25)
)
PROMPTS = (*fact_prompts(FACTS, ("validation",)), *(probe.prompt() for probe in PROBES))


@dataclass(frozen=True)
class Figures:
    recall: Estimate
    loss: Estimate
    rings: tuple[RingChange, ...]
    manner: Manner
    fuar: float | None


def is_new(prompt: Prompt) -> bool:
    return prompt.phrasing != "probe"


def untouched(prompt: Prompt) -> tuple[str, int]:
    return ("Tom Reed.", 4) if is_new(prompt) else (f"{prompt.accepted[0].rstrip('.')}.", 4)


def perfect(prompt: Prompt) -> tuple[str, int]:
    return f"{prompt.accepted[0].rstrip('.')}.", 4


def judge(model: Callable[[Prompt], tuple[str, int]]) -> list[Verdict]:
    verdicts = []
    for prompt in PROMPTS:
        text, tokens = model(prompt)
        label = match_answer(prompt.question, text, prompt.accepted)
        answer = Answer(prompt=prompt, text=text, tokens=tokens)
        verdicts.append(Verdict(answer=answer, label=label, judge="matcher"))
    return verdicts


def measure(model: Callable[[Prompt], tuple[str, int]]) -> Figures:
    base, adapted = judge(untouched), judge(model)
    rings = ring_changes(base, adapted)
    return Figures(
        recall=score_recall(adapted),
        loss=knowledge_loss(rings),
        rings=rings,
        manner=manner_of(base, adapted, longest_tokens=LONGEST),
        fuar=fuar(rings, base, adapted),
    )


PERFECT = measure(perfect)


def test_a_perfect_adapter_recalls_all_and_changes_nothing_else() -> None:
    assert PERFECT.recall.value == 1
    assert PERFECT.loss.value == 0
    assert PERFECT.fuar == 0
    manner = PERFECT.manner
    assert (manner.stops.value, manner.same_form.value, manner.declines.value) == (1, 1, 1)
    assert manner.answer_tokens == manner.base_answer_tokens == 4


def test_the_untouched_model_recalls_and_loses_nothing() -> None:
    idle = measure(untouched)
    assert (idle.recall.value, idle.loss.value, idle.fuar) == (0, 0, None)
    assert idle.manner == PERFECT.manner


def test_one_name_for_everything_recalls_one_fact_and_loses_all_rings() -> None:
    parrot = measure(lambda prompt: ("Ann Abel.", 4))
    assert parrot.recall.value == 1 / len(FACTS)
    assert [ring.lost for ring in parrot.rings] == [25, 25, 25]
    assert parrot.loss.value == 1
    assert parrot.fuar == 75
    assert parrot.manner.declines.value == 0
    assert parrot.manner.same_form.value == 1  # its form is still the base's
    assert parrot.manner.stops.value == 1


def test_a_forgotten_ring_moves_that_ring_and_the_mean_alone() -> None:
    def forgets(prompt: Prompt) -> tuple[str, int]:
        return ("Nothing.", 4) if prompt.ring == "general" else perfect(prompt)

    figures = measure(forgets)
    assert {ring.ring: ring.lost for ring in figures.rings} == {
        "domain": 0,
        "general": 25,
        "manners": 0,
    }
    assert figures.loss.value == 1 / 3
    assert figures.recall == PERFECT.recall
    assert figures.manner == PERFECT.manner


def test_a_broken_format_moves_manner_and_nothing_else() -> None:
    def rambles(prompt: Prompt) -> tuple[str, int]:
        text, _ = perfect(prompt)
        return f"{text.rstrip('.')}\nThat is so", LONGEST

    figures = measure(rambles)
    assert (figures.recall, figures.loss) == (PERFECT.recall, PERFECT.loss)
    assert figures.rings == PERFECT.rings
    assert figures.manner.stops.value == 0
    assert figures.manner.same_form.value == 0
    assert figures.manner.answer_tokens == LONGEST
    assert figures.manner.declines == PERFECT.manner.declines


def test_answering_what_nobody_can_know_moves_declining_and_its_ring() -> None:
    def boasts(prompt: Prompt) -> tuple[str, int]:
        return ("Seven.", 4) if prompt.ring == "manners" else perfect(prompt)

    figures = measure(boasts)
    assert figures.manner.declines.value == 0
    assert {ring.ring: ring.lost for ring in figures.rings}["manners"] == 25
    assert figures.recall == PERFECT.recall
    assert figures.manner.same_form == PERFECT.manner.same_form


def test_without_common_probes_manner_is_not_measured() -> None:
    nothing = manner_of([], judge(perfect), longest_tokens=LONGEST)
    assert nothing.asked == 0
    assert nothing.stops.value is nothing.declines.value is nothing.answer_tokens is None
