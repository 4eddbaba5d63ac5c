"""Measures how fast a model is asked and judged, by one small batch of a study's own prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data.measurements import Answer
from data.prompts import Prompt, fact_prompts
from data.recipes import GREEDY, Recipe
from data.scenarios import Scenario
from objectives.answers.generate import generate
from objectives.answers.request import BASE, Request
from objectives.answers.verify import verify_greedy
from objectives.bank.bank import Bank, EpochTexts
from objectives.judges.matcher import Matcher
from objectives.learn import SEARCHED
from objectives.models.base import BaseModel

# A few prompts are asked first. Only where those are quick many are, which are quicker still by
# the prompt: a large model on a processor would take minutes for them.
_FEW, _MANY = 16, 256
_QUICK_SECONDS = 2.0

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingPace:
    """Seconds that an adapter takes to answer a prompt, to verify a probe, and the matcher's."""

    seconds_per_answer: float
    seconds_per_probe: float
    seconds_per_match: float


def measure_asking_pace(
    base: BaseModel,
    scenario: Scenario,
    recipe: Recipe,
    epoch_texts: EpochTexts,
    *,
    gradient_checkpointing: bool = False,
) -> AskingPace:
    """Return how fast an adapter is asked that was trained for one step.

    Larger batches are faster, so that a study takes at most what follows from this, unless its
    adapters learn to answer at greater length.

    Args:
        base: The model.
        scenario: What is asked; its prompts are taken evenly from all of them.
        recipe: Of the adapter.
        epoch_texts: What it trains on.
        gradient_checkpointing: As in `Bank`.
    """
    prompts = fact_prompts(scenario.facts, SEARCHED, chat=base.chat)
    probes = [probe.prompt(chat=base.chat) for probe in scenario.probes]
    bank = Bank(
        base,
        slots=1,
        max_rank=recipe.rank,
        gradient_checkpointing=gradient_checkpointing,
        halves_when_full=False,
    )
    bank.admit(0, recipe, epoch_texts, seed=0)
    bank.step()
    asked: list[Answer] = []

    def answer(chosen: Sequence[Prompt]) -> float:
        begun = time.perf_counter()
        continuations = generate(base, _ask(chosen, 0), router=bank)
        seconds = time.perf_counter() - begun
        asked[:] = [continuation.answer for continuation in continuations]
        return seconds

    def verify(chosen: Sequence[Prompt]) -> float:
        references = generate(base, _ask(chosen, BASE))
        begun = time.perf_counter()
        verify_greedy(base, references, [0], router=bank)
        return time.perf_counter() - begun

    generate(base, _ask(prompts[:1], 0), router=bank)  # the first call of anything is slow
    return AskingPace(
        seconds_per_answer=_time_each(answer, prompts),
        seconds_per_probe=_time_each(verify, probes),
        seconds_per_match=_time_matching(asked),
    )


def _time_each(work: Callable[[Sequence[Prompt]], float], prompts: Sequence[Prompt]) -> float:
    """Return the seconds that each of some prompts takes together with others."""
    if not prompts:
        return 0.0
    chosen = choose_evenly(prompts, _FEW)
    seconds = work(chosen)
    if seconds < _QUICK_SECONDS:
        chosen = choose_evenly(prompts, _MANY)
        seconds = work(chosen)
    return seconds / len(chosen)


def choose_evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items, from the first on at equal distances."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _ask(prompts: Sequence[Prompt], slot: int) -> list[Request]:
    return [Request(prompt=prompt, slot=slot, sampling=GREEDY, seed=0) for prompt in prompts]


def _time_matching(answers: Sequence[Answer]) -> float:
    begun = time.perf_counter()
    Matcher().judge(answers)
    return (time.perf_counter() - begun) / len(answers)
