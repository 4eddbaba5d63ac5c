"""A bank that runs out of memory trains fewer slots at once and loses no trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from data.recipes import Recipe
from objectives.bank import Bank, probing
from objectives.bank.probing import Probed, choose_slots
from objectives.models.base import BaseModel

EpochTexts = Callable[[int], Sequence[str]]

RECIPE = Recipe(epochs=3, rank=4, alpha=8, cutoff=64, warmup_steps=4, learning_rate=3e-3)


@contextmanager
def memory_for(base: BaseModel, tokens: int) -> Iterator[list[int]]:
    """During it a pass over more tokens runs out of memory; yields the tokens of every pass."""
    passes: list[int] = []

    def check(_module: object, _inputs: object, output: torch.Tensor) -> None:
        passes.append(output.shape[0] * output.shape[1])
        if passes[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = base.model.model.layers[1].mlp.register_forward_hook(check)
    try:
        yield passes
    finally:
        hook.remove()


def fill(bank: Bank, texts: Callable[[int], EpochTexts]) -> None:
    for slot in range(bank.slots):
        bank.admit(slot, dataclasses.replace(RECIPE, rank=1 + slot), texts(slot), seed=slot)


def test_slots_are_trained_in_parts_that_fit_with_the_same_result(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    roomy, tight = Bank(base, slots=4, max_rank=4), Bank(base, slots=4, max_rank=4)
    for bank in (roomy, tight):
        fill(bank, texts)
    largest = 2 * 4 * 15  # two slots of four texts of up to 15 tokens
    with memory_for(base, largest) as passes:
        ended = [tight.step() for _ in range(9)]
    assert ended == [roomy.step() for _ in range(9)]
    assert sum(tokens > largest for tokens in passes) == 1, "from then on two slots go together"
    for slot in range(4):
        assert tight.progress(slot).finished
        assert tight.progress(slot).failure is None
        for name, pair in tight.matrices(slot).items():
            for mine, reference in zip(pair, roomy.matrices(slot)[name], strict=True):
                torch.testing.assert_close(mine, reference, atol=1e-5, rtol=0)


def test_a_slot_that_does_not_fit_alone_fails_with_a_reason_and_harms_nobody(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = Bank(base, slots=2, max_rank=4)
    bank.admit(0, dataclasses.replace(RECIPE, batch_size=11), texts(0), seed=0)
    bank.admit(1, dataclasses.replace(RECIPE, batch_size=1), texts(1), seed=1)
    with memory_for(base, 20):
        assert 0 in bank.step()
    assert (bank.progress(0).failure or "").startswith("memory: 11 texts of up to 15 tokens")
    assert bank.progress(0).steps == 0
    assert bank.progress(1).steps == 1
    assert bank.progress(1).failure is None


def test_the_search_for_slots_stops_where_more_do_not_fit(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    seen: list[Probed] = []
    with memory_for(base, 4 * 15 * 4):
        chosen = choose_slots(base, RECIPE, texts, most=64, on_probed=seen.append)
    assert max(probed.slots for probed in seen) <= 4
    assert chosen <= 4


def test_what_was_only_tried_is_no_part_of_the_peak(
    base: BaseModel, texts: Callable[[int], EpochTexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    monkeypatch.setattr(probing, "forget_peak", lambda _: happened.append("forgotten"))
    monkeypatch.setattr(probing, "peak_gpu_bytes", lambda _: happened.append("read"))
    with memory_for(base, 2 * 4 * 15):
        choose_slots(base, RECIPE, texts, most=4)
    assert happened.count("read") in (1, 2), "what does not fit has no peak worth knowing"
    assert happened[-1] == "forgotten"


def test_the_search_for_slots_stops_at_the_most_and_takes_the_largest_of_the_fastest(
    base: BaseModel, texts: Callable[[int], EpochTexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(fixed: float, per_slot: float, most: int) -> tuple[int, list[int]]:
        # What a step takes: a fixed part, and so much per slot.
        seconds = {slots: fixed + per_slot * slots for slots in (1, 2, 4, 8, 16, 32)}
        monkeypatch.setattr(
            probing,
            "probe",
            lambda _base, _recipe, _texts, slots, _checkpointing: Probed(
                slots=slots, seconds_per_token=seconds[slots] / slots, peak_bytes=None
            ),
        )
        tried: list[int] = []
        chosen = choose_slots(
            base, RECIPE, texts, most=most, on_probed=lambda probed: tried.append(probed.slots)
        )
        return chosen, tried

    # 11, 6, 3.5, 2.25, 1.625 and 1.3125 per slot: each is faster by more than a tenth.
    assert choose(10, 1, 32) == (32, [1, 2, 4, 8, 16, 32])
    assert choose(10, 1, 8) == (8, [1, 2, 4, 8])
    # 1 per slot whatever their number: all are as fast, and after two in vain the search ends.
    assert choose(0, 1, 32) == (4, [1, 2, 4])
    assert choose(10, 1, 0) == (1, [1])


def test_the_first_slot_must_fit(base: BaseModel, texts: Callable[[int], EpochTexts]) -> None:
    with memory_for(base, 1), pytest.raises(torch.OutOfMemoryError):
        choose_slots(base, RECIPE, texts, most=4)
