"""Measures how fast a model answers with an adapter and without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from data.prompts import Prompt
from data.recipes import GREEDY
from objectives.answers.generate import generate
from objectives.answers.request import BASE, AdapterRouter, Request, never, stoppable
from objectives.models.base import BaseModel

_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpeed:
    """Generated tokens per second, of all answers of a batch together."""

    with_adapter: float
    without_adapter: float


def measure_answer_speed(
    base: BaseModel,
    prompts: Sequence[Prompt],
    *,
    slot: int,
    router: AdapterRouter,
    should_stop: Callable[[], bool] = never,
) -> AnswerSpeed:
    """Return the medians of three rounds, in which the adapter and the base take turns.

    Both answer the same prompts greedily. Their answers differ, and so does their length: a rate
    counts what was generated.

    Args:
        base: The model.
        prompts: At least one.
        slot: The adapter's.
        router: Where it is.
        should_stop: Asked before every forward pass.

    Raises:
        AskingStopped: If `should_stop` says so.
    """

    def rate(reader: int) -> float:
        requests = [Request(prompt=p, slot=reader, sampling=GREEDY, seed=0) for p in prompts]
        begun = time.perf_counter()
        answered = generate(base, requests, router=router)
        seconds = time.perf_counter() - begun
        return sum(len(continuation.token_ids) for continuation in answered) / seconds

    with stoppable(base.model, should_stop):
        rate(slot)  # the first call of anything is slow
        rounds = [(rate(slot), rate(BASE)) for _ in range(_ROUNDS)]
    with_adapter, without_adapter = map(median, zip(*rounds, strict=True))
    return AnswerSpeed(with_adapter=with_adapter, without_adapter=without_adapter)
