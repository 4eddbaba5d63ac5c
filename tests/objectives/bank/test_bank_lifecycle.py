"""Slots are admitted, finished, failed, released and refilled without touching each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from data.recipes import Recipe
from objectives.bank import Bank, Progress
from objectives.models.base import BaseModel

EpochTexts = Callable[[int], Sequence[str]]

RECIPE = Recipe(epochs=3, rank=4, alpha=8, cutoff=64, warmup_steps=2, learning_rate=3e-3)


def copy_state(bank: Bank, slot: int) -> tuple[Tensor, Tensor, Tensor]:
    state = bank.snapshot(slot)
    return state.weights, state.first_moments, state.second_moments


def is_same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def everything_in(bank: Bank, slot: int) -> Tensor:
    """Return all numbers a slot holds, its padding included, as (3, ranks, width)."""
    adapters = bank._adapters
    place = adapters.place(slot)
    return torch.stack(
        [adapters.weights[place], adapters.first_moments[place], adapters.second_moments[place]]
    )


def test_epochs_and_steps_are_counted_and_reported(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = Bank(base, slots=2, max_rank=4)
    bank.admit(0, RECIPE, texts(0), seed=0)  # 11 texts in batches of 4: 3 steps an epoch
    bank.admit(1, dataclasses.replace(RECIPE, epochs=1, batch_size=6), texts(0), seed=0)  # 2 steps
    ended = [bank.step() for _ in range(10)]
    assert ended == [(), (1,), (0,), (), (), (0,), (), (), (0,), ()]
    progress = bank.progress(0)
    assert (progress.epoch, progress.finished, progress.steps) == (3, True, 9)
    # Every text is a BOS, its words and an EOS; all but the BOS are predicted, three times.
    predicted = sum(len(text.split()) + 1 for text in texts(0)(0))
    assert progress.trained_tokens == 3 * predicted
    assert bank.progress(1).trained_tokens == predicted
    assert progress.highest_learning_rate == RECIPE.learning_rate
    assert progress.failure is None


def test_padding_is_counted_against_the_largest_slot_of_the_group(base: BaseModel) -> None:
    bank = Bank(base, slots=3, max_rank=4)
    # With BOS and EOS 4 and 3 tokens, of which all but the last are read.
    bank.admit(0, RECIPE, lambda _: ["w1 w2", "w1"], seed=0)
    bank.admit(1, RECIPE, lambda _: ["w1 w2 w3"], seed=0)
    bank.admit(2, dataclasses.replace(RECIPE, rank=1), lambda _: ["w1 w2"], seed=0)
    bank.step()
    assert [bank.progress(slot).padding_tokens for slot in range(3)] == [0, 5 - 4, 5 - 3]
    # Of three slots of 5 tokens and rank 4, what their own tokens and ranks need.
    assert RECIPE.rank == 4
    assert bank.padding_share == pytest.approx(1 - (5 * 4 + 4 * 4 + 3 * 1) / (3 * 5 * 4))


def test_the_learning_rate_rises_with_the_steps_taken(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = Bank(base, slots=1, max_rank=4)
    bank.admit(0, dataclasses.replace(RECIPE, warmup_steps=4), texts(0), seed=0)
    assert bank.progress(0) == Progress()
    seen = []
    for _ in range(5):
        bank.step()
        seen.append(bank.progress(0).highest_learning_rate / RECIPE.learning_rate)
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_training_lowers_the_loss(base: BaseModel, texts: Callable[[int], EpochTexts]) -> None:
    bank = Bank(base, slots=1, max_rank=4)
    recipe = dataclasses.replace(RECIPE, epochs=40, batch_size=11, learning_rate=1e-2)
    bank.admit(0, recipe, texts(0), seed=0)
    losses = []
    while not bank.progress(0).finished:
        bank.step()
        losses.append(bank.progress(0).loss_nats)
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0] / 2


def test_only_the_named_slots_take_a_step(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = Bank(base, slots=3, max_rank=8)
    for slot, rank in enumerate((2, 8, 4)):
        bank.admit(slot, dataclasses.replace(RECIPE, rank=rank), texts(slot), seed=slot)
    bank.step()
    before = [copy_state(bank, slot) for slot in range(3)]
    bank.step([2, 0])
    assert [bank.progress(slot).steps for slot in range(3)] == [2, 1, 2]
    assert [is_same(before[slot], copy_state(bank, slot)) for slot in range(3)] == [
        False,
        True,
        False,
    ]


def test_finished_and_empty_slots_do_not_move(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = Bank(base, slots=3, max_rank=8)
    decaying = dataclasses.replace(RECIPE, epochs=1, weight_decay=0.1)
    bank.admit(0, decaying, texts(0), seed=0)
    bank.admit(2, RECIPE, texts(2), seed=2)
    while not bank.progress(0).finished:
        bank.step()
    finished = copy_state(bank, 0)
    assert finished[1].any(), "momentum that could still move it"
    bank.step()
    assert bank.progress(2).steps == 4
    assert is_same(finished, copy_state(bank, 0))
    assert not everything_in(bank, 1).any()
    assert bank.progress(1) == Progress()


def test_all_slots_share_one_pass_however_they_differ(base: BaseModel) -> None:
    bank = Bank(base, slots=3, max_rank=8)
    for slot, (rank, words, rows) in enumerate([(8, 13, 1), (1, 18, 4), (2, 60, 3)]):
        recipe = dataclasses.replace(RECIPE, rank=rank, batch_size=rows)
        document = " ".join(["w1"] * words)  # and a BOS and an EOS
        bank.admit(slot, recipe, partial(_four_times, document), seed=slot)
    seen: list[int] = []
    hook = base.model.register_forward_hook(lambda *_: seen.append(1))
    bank.step()
    hook.remove()
    assert len(seen) == 1


def test_a_bank_without_training_slots_has_nothing_to_do(base: BaseModel) -> None:
    assert Bank(base, slots=2, max_rank=4).step() == ()


def test_padding_ranks_and_other_modules_stay_exactly_zero_after_a_refill(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = Bank(base, slots=2, max_rank=8)
    bank.admit(0, dataclasses.replace(RECIPE, rank=8), texts(0), seed=0)
    bank.admit(1, dataclasses.replace(RECIPE, rank=7, epochs=30), texts(1), seed=1)
    for _ in range(5):
        bank.step()
    bank.release(0)
    assert not everything_in(bank, 0).any()
    small = dataclasses.replace(
        RECIPE, rank=3, epochs=10, target_modules="mlp", weight_decay=0.1, dropout=0.1
    )
    bank.admit(0, small, texts(2), seed=2)
    fresh = Bank(base, slots=1, max_rank=3)
    fresh.admit(0, small, texts(2), seed=2)
    for _ in range(20):
        bank.step()
        fresh.step()
    mlp = bank.layout.columns(bank.layout.positions("mlp"))
    held = everything_in(bank, 0)
    assert held[:, :3, mlp].any()
    assert not held[:, 3:].any()
    assert not held[:, :, : mlp.start].any()
    for name, pair in bank.matrices(0).items():
        for refilled, reference in zip(pair, fresh.matrices(0)[name], strict=True):
            torch.testing.assert_close(refilled, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cause", ["learning rate", "infinite weight"])
def test_a_slot_that_blows_up_harms_nobody(
    base: BaseModel, texts: Callable[[int], EpochTexts], cause: str
) -> None:
    sound = dataclasses.replace(RECIPE, epochs=5)
    broken = dataclasses.replace(
        sound, warmup_steps=0, learning_rate=1e30 if cause == "learning rate" else 1e-3
    )
    crowd, alone = Bank(base, slots=3, max_rank=8), Bank(base, slots=3, max_rank=8)
    for bank in (crowd, alone):
        bank.admit(0, sound, texts(0), seed=0)
        bank.admit(2, dataclasses.replace(sound, rank=8, batch_size=3), texts(2), seed=2)
    crowd.admit(1, broken, texts(1), seed=1)
    if cause == "infinite weight":
        next(iter(crowd.matrices(1).values()))[0][0, 0] = math.inf
    ended: list[int] = []
    before = copy_state(crowd, 1)
    while crowd.progress(1).failure is None:
        before = copy_state(crowd, 1)
        ended += crowd.step()
        alone.step()
    assert crowd.progress(1).steps < 3
    assert 1 in ended
    assert "learning rate" in (crowd.progress(1).failure or "")
    assert is_same(before, copy_state(crowd, 1))
    for _ in range(6):
        crowd.step()
        alone.step()
    assert is_same(before, copy_state(crowd, 1)), "a failed slot has stopped"
    for slot in (0, 2):
        assert crowd.progress(slot).failure is None
        for mine, reference in zip(copy_state(crowd, slot), copy_state(alone, slot), strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-5, rtol=0)


def test_a_slot_is_released_before_it_is_filled_again(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = Bank(base, slots=1, max_rank=4)
    bank.admit(0, RECIPE, texts(0), seed=0)
    with pytest.raises(ValueError, match="slot: 0 is not empty; release it first"):
        bank.admit(0, RECIPE, texts(0), seed=0)
    bank.release(0)
    bank.admit(0, RECIPE, texts(0), seed=0)


@pytest.mark.parametrize(
    ("slot", "recipe", "message"),
    [
        (1, RECIPE, r"slot: 1 does not exist; it must be in 0\.\.0"),
        (0, dataclasses.replace(RECIPE, rank=5), "rank: 5 is not allowed; it must be at most 4"),
        (
            0,
            dataclasses.replace(RECIPE, cutoff=65),
            "cutoff: 65 is not allowed; it must be at most 64 tokens",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_slot_empty(
    base: BaseModel,
    texts: Callable[[int], EpochTexts],
    slot: int,
    recipe: Recipe,
    message: str,
) -> None:
    bank = Bank(base, slots=1, max_rank=4)
    with pytest.raises(ValueError, match=message):
        bank.admit(slot, recipe, texts(0), seed=0)
    bank.admit(0, RECIPE, texts(0), seed=0)


def test_a_first_epoch_without_text_is_an_error(base: BaseModel) -> None:
    bank = Bank(base, slots=1, max_rank=4)
    with pytest.raises(ValueError, match="epoch_texts: epoch 0 has 0 batches"):
        bank.admit(0, RECIPE, lambda _: [], seed=0)


def test_an_empty_text_is_trained_on_as_its_end(base: BaseModel) -> None:
    bank = Bank(base, slots=1, max_rank=4)
    bank.admit(0, RECIPE, lambda _: ["", "w1"], seed=0)
    bank.step()
    assert bank.progress(0).trained_tokens == 1 + 2
    assert math.isfinite(bank.progress(0).loss_nats or math.nan)


def test_training_leaves_the_base_and_the_global_generator_untouched(
    base: BaseModel, texts: Callable[[int], EpochTexts], token_ids: Tensor
) -> None:
    weights = {name: value.clone() for name, value in base.model.state_dict().items()}
    logits = base.model(token_ids).logits
    generator = torch.get_rng_state()
    bank = Bank(base, slots=2, max_rank=4)
    for slot in range(2):
        bank.admit(slot, dataclasses.replace(RECIPE, dropout=0.1), texts(slot), seed=slot)
    bank.step()
    with bank.answering([slot for slot in (0, 1, 1, 0, -1, 0) for _ in range(9)]):
        base.model(token_ids)
    assert torch.equal(base.model(token_ids).logits, logits)
    assert all(torch.equal(value, weights[n]) for n, value in base.model.state_dict().items())
    assert all(not module._forward_hooks for module in base.model.modules())
    assert all(not module._forward_pre_hooks for module in base.model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


def _four_times(text: str, _epoch: int) -> list[str]:
    return [text] * 4
