"""Whatever trials share a bank, come and go: each trains as it would alone, and only itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from data.recipes import TARGET_MODULES, Recipe
from objectives.bank import Bank, export_adapter
from objectives.bank.bank import TrainingState
from objectives.models.base import BaseModel

EpochTexts = Callable[[int], Sequence[str]]
Texts = Callable[[int], EpochTexts]

MAX_RANK = 8


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A recipe with the seed that fixes its texts, its initial weights and its dropout."""

    recipe: Recipe
    seed: int


def make_trials(
    *, epochs: st.SearchStrategy[int], batch_size: st.SearchStrategy[int]
) -> st.SearchStrategy[Trial]:
    recipe = st.builds(
        Recipe,
        epochs=epochs,
        batch_size=batch_size,
        rank=st.integers(1, MAX_RANK),
        alpha=st.sampled_from([1.0, 4.0, 7.5, 16.0]),
        cutoff=st.integers(8, 64),
        # Where a gradient is rounding noise, Adam's first steps are noise too, as large as the
        # rate. It is small and rises slowly here, so that 1e-5 tells rounding from a fault.
        warmup_steps=st.integers(4, 8),
        learning_rate=st.sampled_from([3e-4, 1e-3]),
        target_modules=st.sampled_from(TARGET_MODULES),
        packing=st.sampled_from(["separate", "joined"]),
        rslora=st.booleans(),
        dropout=st.sampled_from([0.0, 0.2]),
        weight_decay=st.sampled_from([0.0, 0.1]),
    )
    return st.builds(Trial, recipe=recipe, seed=st.integers(0, 5))


# The texts are eleven: an epoch has from 2 steps to 19.
any_trials = make_trials(epochs=st.integers(1, 3), batch_size=st.integers(1, 5))
short_trials = make_trials(epochs=st.just(1), batch_size=st.integers(4, 6))
long_trials = make_trials(epochs=st.just(9), batch_size=st.integers(1, 5))


class Play:
    """A bank in which trials are admitted, trained and released at random.

    `trial_of` says who is where, and `asked` which slots were to take the last step.
    """

    def __init__(
        self,
        base: BaseModel,
        texts: Texts,
        data: st.DataObject,
        trials: st.SearchStrategy[Trial] = any_trials,
    ) -> None:
        self._texts = texts
        self._data = data
        self._trials = trials
        self.bank = Bank(base, slots=data.draw(st.integers(2, 4)), max_rank=MAX_RANK)
        self.trial_of: dict[int, Trial] = {}
        self.asked: set[int] = set()
        self._released: list[tuple[Trial, TrainingState]] = []

    def events(self, count: int) -> Iterator[str]:
        """Make things happen; yield the name of each afterwards."""
        for _ in range(count):
            free = sorted(set(range(self.bank.slots)) - set(self.trial_of))
            possible = ["admit", "admit"] * bool(free)
            possible += ["step", "step", "step", "release"] * bool(self.trial_of)
            event = self._data.draw(st.sampled_from(possible))
            match event:
                case "admit":
                    self._admit(self._data.draw(st.sampled_from(free)))
                case "step":
                    self._step()
                case "release":
                    self._release(self._data.draw(st.sampled_from(sorted(self.trial_of))))
            yield event

    def end(self) -> list[tuple[Trial, TrainingState]]:
        """Release all; return every trial that there was with what became of it."""
        for slot in sorted(self.trial_of):
            self._release(slot)
        return self._released

    def _admit(self, slot: int) -> None:
        trial = self.trial_of[slot] = self._data.draw(self._trials)
        admit(self.bank, slot, trial, self._texts)

    def _step(self) -> None:
        slots = range(self.bank.slots)
        some = self._data.draw(
            st.one_of(st.none(), st.none(), st.lists(st.sampled_from(slots), unique=True))
        )
        self.asked = set(slots if some is None else some)
        self.bank.step(some)

    def _release(self, slot: int) -> None:
        self._released.append((self.trial_of.pop(slot), self.bank.snapshot(slot)))
        self.bank.release(slot)


def admit(bank: Bank, slot: int, trial: Trial, texts: Texts) -> None:
    bank.admit(slot, trial.recipe, texts(trial.seed), seed=trial.seed)


def train_alone(base: BaseModel, trial: Trial, texts: Texts, steps: int) -> TrainingState:
    bank = Bank(base, slots=1, max_rank=trial.recipe.rank)
    admit(bank, 0, trial, texts)
    for _ in range(steps):
        bank.step()
    return bank.snapshot(0)


def assert_trained_alike(one: TrainingState, other: TrainingState) -> None:
    torch.testing.assert_close(one.weights, other.weights, atol=1e-5, rtol=0)
    # Gradients are at most 1, and Adam's means of them know no such noise as the weights.
    torch.testing.assert_close(one.first_moments, other.first_moments, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.second_moments, other.second_moments, atol=1e-6, rtol=0)
    counters = [
        replace(state.counters, padding_tokens=0, loss_nats=None) for state in (one, other)
    ]
    assert counters[0] == counters[1]
    assert one.counters.loss_nats == pytest.approx(other.counters.loss_nats, abs=1e-5)


def is_bitwise_the_same(one: TrainingState, other: TrainingState) -> bool:
    return one.counters == other.counters and all(
        torch.equal(mine, theirs)
        for mine, theirs in (
            (one.weights, other.weights),
            (one.first_moments, other.first_moments),
            (one.second_moments, other.second_moments),
        )
    )


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_trial_trains_as_if_alone_wherever_and_whenever_it_is_admitted(
    base: BaseModel, texts: Texts, data: st.DataObject
) -> None:
    play = Play(base, texts, data)
    for _ in play.events(14):
        pass
    for trial, state in play.end():
        assert_trained_alike(state, train_alone(base, trial, texts, state.counters.steps))


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_what_no_trial_trains_is_exactly_zero_after_every_event(
    base: BaseModel, texts: Texts, data: st.DataObject
) -> None:
    play = Play(base, texts, data)
    for _ in play.events(14):
        bank = play.bank
        for slot in range(bank.slots):
            tensors = (
                bank._adapters.weights,
                bank._adapters.first_moments,
                bank._adapters.second_moments,
            )
            held = torch.stack([tensor[bank._adapters.place(slot)] for tensor in tensors])
            if (trial := play.trial_of.get(slot)) is not None:
                positions = bank.layout.positions(trial.recipe.target_modules)
                held[:, : trial.recipe.rank, bank.layout.columns(positions)] = 0
            assert not held.any()


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_who_has_finished_or_is_not_asked_stays_bit_for_bit(
    base: BaseModel, texts: Texts, data: st.DataObject
) -> None:
    play = Play(base, texts, data, short_trials)
    before: dict[int, TrainingState] = {}
    for event in play.events(20):
        now = {slot: play.bank.snapshot(slot) for slot in play.trial_of}
        for slot in before.keys() & now.keys():
            finished = before[slot].counters.epoch == before[slot].recipe.epochs
            moves = event == "step" and slot in play.asked and not finished
            assert is_bitwise_the_same(before[slot], now[slot]) != moves
            assert now[slot].counters.steps == before[slot].counters.steps + moves
        before = now


@settings(max_examples=10, deadline=None)
@given(
    crowd=st.lists(long_trials, min_size=2, max_size=4),
    data=st.data(),
    steps_before=st.integers(0, 4),
    poison=st.sampled_from([math.inf, -math.inf, math.nan]),
)
def test_a_trial_that_is_no_number_any_more_fails_and_harms_nobody(
    base: BaseModel,
    texts: Texts,
    crowd: list[Trial],
    data: st.DataObject,
    steps_before: int,
    poison: float,
) -> None:
    bank = Bank(base, slots=len(crowd), max_rank=MAX_RANK)
    for slot, trial in enumerate(crowd):
        admit(bank, slot, trial, texts)
    for _ in range(steps_before):
        bank.step()
    broken = data.draw(st.integers(0, len(crowd) - 1))
    matrix: Tensor = data.draw(
        st.sampled_from([side for pair in bank.matrices(broken).values() for side in pair])
    )
    matrix[data.draw(st.integers(0, len(matrix) - 1)), 0] = poison
    poisoned = bank.snapshot(broken)

    assert broken in bank.step()
    bank.step()

    failure = bank.progress(broken).failure or ""
    assert "it was nan in step" in failure or "it was inf in step" in failure
    assert bank.progress(broken).steps == steps_before
    held = bank.snapshot(broken).weights
    assert torch.equal(held.nan_to_num(7.0), poisoned.weights.nan_to_num(7.0))
    for slot in set(range(len(crowd))) - {broken}:
        assert bank.progress(slot).failure is None
        assert_trained_alike(
            bank.snapshot(slot), train_alone(base, crowd[slot], texts, steps_before + 2)
        )


@settings(max_examples=10, deadline=None)
@given(
    trial=any_trials,
    steps=st.integers(0, 8),
    slots=st.integers(1, 4),
    spare_ranks=st.integers(0, 4),
    data=st.data(),
)
def test_a_trial_goes_on_bit_for_bit_in_another_slot_of_another_bank(
    base: BaseModel,
    texts: Texts,
    trial: Trial,
    steps: int,
    slots: int,
    spare_ranks: int,
    data: st.DataObject,
) -> None:
    slot = data.draw(st.integers(0, slots - 1))
    resumed = Bank(base, slots=slots, max_rank=trial.recipe.rank + spare_ranks)
    resumed.resume(slot, train_alone(base, trial, texts, steps), texts(trial.seed))
    for _ in range(4):
        resumed.step()
    uninterrupted = train_alone(base, trial, texts, steps + 4)
    assert is_bitwise_the_same(resumed.snapshot(slot), uninterrupted)


@settings(max_examples=8, deadline=None)
@given(trial=long_trials, data=st.data())
def test_a_trial_that_moves_from_bank_to_bank_ends_as_one_that_stays_alone(
    base: BaseModel, texts: Texts, trial: Trial, data: st.DataObject
) -> None:
    state = train_alone(base, trial, texts, 0)
    for _ in range(3):
        neighbours = data.draw(st.lists(long_trials, max_size=2))
        bank = Bank(base, slots=len(neighbours) + 1, max_rank=MAX_RANK)
        slot, *others = data.draw(st.permutations(range(bank.slots)))
        for other, neighbour in zip(others, neighbours, strict=True):
            admit(bank, other, neighbour, texts)
        bank.resume(slot, state, texts(trial.seed))
        for _ in range(data.draw(st.integers(0, 3))):
            bank.step()
        state = bank.snapshot(slot)
    assert_trained_alike(state, train_alone(base, trial, texts, state.counters.steps))


# PEFT still reads an attribute of models that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@settings(max_examples=6, deadline=None)
@given(crowd=st.lists(long_trials, min_size=1, max_size=3))
def test_exported_adapters_answer_in_peft_as_in_the_bank(
    base: BaseModel, texts: Texts, tmp_path_factory: pytest.TempPathFactory, crowd: list[Trial]
) -> None:
    bank = Bank(base, slots=len(crowd), max_rank=MAX_RANK)
    for slot, trial in enumerate(crowd):
        admit(bank, slot, trial, texts)
    for _ in range(4):
        bank.step()
    token_ids = torch.arange(4, 94).view(6, 15)
    folder = tmp_path_factory.mktemp("exported")
    for slot in range(len(crowd)):
        export_adapter(bank, slot, folder / str(slot))
        model = PeftModel.from_pretrained(copy.deepcopy(base.model), str(folder / str(slot)))
        with torch.no_grad():
            bare, in_peft = base.model(token_ids).logits, model(token_ids).logits
            with bank.answering([slot] * token_ids.numel()):
                in_bank = base.model(token_ids).logits
        torch.testing.assert_close(in_bank, in_peft, atol=1e-5, rtol=1e-5)
        assert (in_bank - bare).abs().max() > 1e-4, "an adapter that does something"
