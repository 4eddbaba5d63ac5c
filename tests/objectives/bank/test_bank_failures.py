"""Whatever a pass or a text raises costs the one slot at fault; all others train as without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from data.recipes import Recipe
from objectives.bank import Bank
from objectives.bank import bank as bank_module
from objectives.bank.probing import choose_slots
from objectives.models.base import BaseModel
from objectives.models.linear_modules import find_linear_modules

EpochTexts = Callable[[int], Sequence[str]]

RECIPE = Recipe(epochs=4, rank=4, alpha=8, cutoff=64, warmup_steps=2, learning_rate=3e-3)
POISON = "poison"  # no word of the others' texts: the model reads it as <unk>


class Interruption(BaseException):
    """What ends a program at any moment."""


def poisoned(_epoch: int) -> list[str]:
    return [f"w1 w2 {POISON}", f"{POISON} w3 w4 w5"] * 6


def late_poison(epoch: int) -> list[str]:
    return poisoned(epoch) if epoch else ["w1 w2", "w3 w4 w5"] * 6


@contextmanager
def passes_that_fail(
    base: BaseModel, error: Callable[[], BaseException], *, backward: bool = False
) -> Iterator[list[bool]]:
    """During it passes over the poison raise; yields for every pass whether it read the poison.

    A backward pass fails in the first layer, when the second has written its gradients.
    """
    poison = base.encode_prompt(POISON)[-1]
    passes: list[bool] = []

    def fail(_gradient: Tensor) -> None:
        raise error()

    def look(_module: object, inputs: tuple[Tensor, ...], _output: object) -> None:
        passes.append(bool((inputs[0] == poison).any()))

    def hold(_module: object, _inputs: object, output: Tensor) -> None:
        if not passes[-1]:
            return
        if not backward:
            raise error()
        output.register_hook(fail)  # type: ignore[no-untyped-call]

    hooks = (
        base.model.get_input_embeddings().register_forward_hook(look),
        base.model.model.layers[0].mlp.register_forward_hook(hold),
    )
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def make_bank(base: BaseModel, texts: Callable[[int], EpochTexts], slots: Sequence[int]) -> Bank:
    """Return a bank of eight slots in which these are filled with trials that differ."""
    bank = Bank(base, slots=8, max_rank=8)
    for slot in slots:
        recipe = dataclasses.replace(
            RECIPE,
            rank=1 + slot,
            target_modules=("all", "mlp", "query+value")[slot % 3],
            dropout=0.1 * (slot % 2),
        )
        bank.admit(slot, recipe, texts(slot), seed=slot)
    return bank


def assert_trained_alike(one: Bank, other: Bank, slots: Sequence[int]) -> None:
    for slot in slots:
        mine, reference = one.snapshot(slot), other.snapshot(slot)
        assert dataclasses.replace(
            mine.counters, padding_tokens=0, loss_nats=None
        ) == dataclasses.replace(reference.counters, padding_tokens=0, loss_nats=None)
        for field in ("weights", "first_moments", "second_moments"):
            torch.testing.assert_close(
                getattr(mine, field), getattr(reference, field), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        lambda: RuntimeError("shapes\n  do not fit"),
        lambda: IndexError("index 7 is out of range"),
        lambda: NotImplementedError(),
        lambda: AssertionError("x" * 500),
    ],
    ids=["two lines", "another type", "no message", "too long"],
)
def test_any_exception_fails_the_slot_at_fault_and_harms_nobody(
    base: BaseModel,
    texts: Callable[[int], EpochTexts],
    error: Callable[[], Exception],
    backward: bool,
) -> None:
    sound = [0, 1, 2, 4, 5, 6, 7]
    crowd, alone = make_bank(base, texts, sound), make_bank(base, texts, sound)
    crowd.admit(3, RECIPE, poisoned, seed=3)
    before = crowd.snapshot(3)
    alone.step()
    with passes_that_fail(base, error, backward=backward) as passes:
        assert crowd.step() == (3,)
        # Of all eight, of four, two, two, one and one of these, and of the other four.
        assert passes == [True, True, False, True, False, True, False]
        passes.clear()
        for _ in range(7):
            crowd.step()
            alone.step()
        assert len(passes) == 14, "the others share one pass again"
    reason = crowd.progress(3).failure or ""
    assert reason.startswith(type(error()).__name__)
    assert " ".join(str(error()).split())[:150] in reason
    assert len(reason) <= 200
    assert "\n" not in reason
    after = crowd.snapshot(3)
    assert after.counters == dataclasses.replace(before.counters, failure=reason)
    for field in ("weights", "first_moments", "second_moments"):
        assert torch.equal(getattr(before, field), getattr(after, field))
    assert_trained_alike(crowd, alone, sound)


def test_several_slots_may_fail_in_one_step(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    crowd, alone = make_bank(base, texts, [1, 4]), make_bank(base, texts, [1, 4])
    for slot in (0, 2, 5):
        crowd.admit(slot, RECIPE, poisoned, seed=slot)
    with passes_that_fail(base, lambda: ValueError("no")):
        assert crowd.step() == (0, 2, 5)
    alone.step()
    assert_trained_alike(crowd, alone, [1, 4])
    crowd.release(2)
    crowd.admit(2, RECIPE, texts(2), seed=2)
    crowd.step()
    assert crowd.progress(2).steps == 1


def test_what_is_raised_leaves_no_trace_in_the_base(
    base: BaseModel, texts: Callable[[int], EpochTexts], token_ids: Tensor
) -> None:
    logits = base.model(token_ids).logits
    bank = Bank(base, slots=2, max_rank=8, gradient_checkpointing=True)
    bank.admit(0, RECIPE, texts(0), seed=0)
    bank.admit(1, RECIPE, poisoned, seed=1)
    with passes_that_fail(base, lambda: RuntimeError("no"), backward=True):
        bank.step()
    assert bank.progress(1).failure == "RuntimeError: no"
    assert bank.progress(0).steps == 1
    assert torch.equal(base.model(token_ids).logits, logits)
    assert all(not module._forward_hooks for module in base.model.modules())
    assert all(not module._forward_pre_hooks for module in base.model.modules())
    assert not any(module.training for module in base.model.modules())
    assert base.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, Interruption])
def test_what_ends_the_program_is_no_failure_of_a_slot(
    base: BaseModel, texts: Callable[[int], EpochTexts], ending: type[BaseException]
) -> None:
    bank = make_bank(base, texts, [0])
    bank.admit(1, RECIPE, poisoned, seed=1)
    with passes_that_fail(base, ending), pytest.raises(ending):
        bank.step()
    assert [bank.progress(slot).failure for slot in range(2)] == [None, None]
    assert [bank.progress(slot).steps for slot in range(2)] == [0, 0]


def test_a_device_that_is_lost_is_no_failure_of_a_slot(
    base: BaseModel, texts: Callable[[int], EpochTexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_module, "still_computes", lambda _: False)
    bank = make_bank(base, texts, [0])
    bank.admit(1, RECIPE, poisoned, seed=1)
    with (
        passes_that_fail(base, lambda: RuntimeError("CUDA error: device-side assert")),
        pytest.raises(RuntimeError, match="device-side assert"),
    ):
        bank.step()
    assert [bank.progress(slot).failure for slot in range(2)] == [None, None]


def test_an_error_while_the_number_of_slots_is_tried_out_is_raised(base: BaseModel) -> None:
    with (
        passes_that_fail(base, lambda: RuntimeError("shapes do not fit")),
        pytest.raises(RuntimeError, match="shapes do not fit"),
    ):
        choose_slots(base, RECIPE, lambda _: poisoned, most=4)


def test_memory_and_another_fault_in_one_step_are_told_apart(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    crowd, alone = make_bank(base, texts, [0, 1, 2]), make_bank(base, texts, [0, 1, 2])
    crowd.admit(5, RECIPE, poisoned, seed=5)
    sizes: list[int] = []

    def check(_module: object, _inputs: object, output: Tensor) -> None:
        sizes.append(output.shape[0] * output.shape[1])
        if sizes[-1] > 2 * 4 * 15:  # two slots of four texts of up to 15 tokens
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = base.model.model.layers[1].mlp.register_forward_hook(check)
    with passes_that_fail(base, lambda: ValueError("no")):
        assert crowd.step() == (5,)
        for _ in range(3):
            crowd.step()
    hook.remove()
    for _ in range(4):
        alone.step()
    assert crowd.progress(5).failure == "ValueError: no"
    assert_trained_alike(crowd, alone, [0, 1, 2])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_slot_that_does_not_fit_alone_is_told_what_would_help(
    base: BaseModel, checkpointing: bool
) -> None:
    bank = Bank(base, slots=1, max_rank=4, gradient_checkpointing=checkpointing)
    bank.admit(0, RECIPE, poisoned, seed=0)
    with passes_that_fail(base, MemoryError):
        assert bank.step() == (0,)
    reason = bank.progress(0).failure or ""
    assert reason.startswith("memory: 4 texts of up to 6 tokens")
    assert "a smaller batch_size or cutoff may help" in reason
    assert ("gradient_checkpointing" in reason) is not checkpointing
    assert len(reason) <= 200


def gone_later(epoch: int) -> list[str]:
    if epoch:
        raise OSError("the file of texts is gone")
    return ["w1 w2", "w3"]


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        (lambda epoch: [] if epoch else ["w1 w2"], "epoch_texts: epoch 1 has 0 batches"),
        (lambda epoch: [7] if epoch else ["w1 w2"], "epoch_texts: 7 cannot be tokenised"),
        (gone_later, "OSError: the file of texts is gone"),
    ],
    ids=["no text", "no string", "raises"],
)
def test_a_later_epoch_that_cannot_be_trained_on_fails_its_slot_alone(
    base: BaseModel, texts: Callable[[int], EpochTexts], later: EpochTexts, reason: str
) -> None:
    crowd, alone = make_bank(base, texts, [0, 2]), make_bank(base, texts, [0, 2])
    crowd.admit(1, RECIPE, later, seed=1)
    assert crowd.step() == (1,)
    assert crowd.progress(1).epoch == 1
    assert crowd.step() == (1,)
    assert reason in (crowd.progress(1).failure or "")
    crowd.step()
    for _ in range(3):
        alone.step()
    assert_trained_alike(crowd, alone, [0, 2])


def test_a_fault_in_a_later_epoch_keeps_the_weights_of_the_last_good_step(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = make_bank(base, texts, [0])
    bank.admit(1, RECIPE, late_poison, seed=1)
    with passes_that_fail(base, lambda: RuntimeError("no")):
        for _ in range(3):
            bank.step()
        before = bank.snapshot(1)
        assert before.counters.epoch == 1
        assert 1 in bank.step()
    after = bank.snapshot(1)
    assert after.counters == dataclasses.replace(before.counters, failure="RuntimeError: no")
    assert torch.equal(before.weights, after.weights)
    with bank.answering([1]):
        base.model(torch.tensor([[5]]))


@pytest.mark.parametrize(
    ("recipe", "epoch_texts", "message"),
    [
        (dataclasses.replace(RECIPE, rank=9), poisoned, "rank: 9 is not allowed"),
        (dataclasses.replace(RECIPE, cutoff=65), poisoned, "cutoff: 65 is not allowed"),
        (RECIPE, lambda _: ["w1", None], "epoch_texts: None cannot be tokenised"),
        (RECIPE, lambda _: [["w" * 999]], "epoch_texts: .{61} cannot be tokenised"),
        (RECIPE, lambda _: [""], None),
        (RECIPE, lambda _: [], "epoch_texts: epoch 0 has 0 batches"),
    ],
    ids=["rank", "cutoff", "no string", "long text", "an empty text can", "no text"],
)
def test_what_cannot_work_is_refused_and_leaves_the_bank_as_it_was(
    base: BaseModel,
    texts: Callable[[int], EpochTexts],
    recipe: Recipe,
    epoch_texts: EpochTexts,
    message: str | None,
) -> None:
    bank, untouched = make_bank(base, texts, [0, 2]), make_bank(base, texts, [0, 2])
    for each in (bank, untouched):
        each.step()
    if message is None:
        bank.admit(1, recipe, epoch_texts, seed=1)  # an empty text still has its end
        return
    with pytest.raises(ValueError, match=message):
        bank.admit(1, recipe, epoch_texts, seed=1)
    assert bank.progress(1) == untouched.progress(1)
    assert torch.equal(bank._adapters.weights, untouched._adapters.weights)
    with pytest.raises(ValueError, match="slot: 1 is empty"):
        bank.answering([1])
    for each in (bank, untouched):
        each.step()
        each.admit(1, RECIPE, texts(1), seed=1)
        each.step()
    assert_trained_alike(bank, untouched, [0, 1, 2])


def test_target_modules_that_a_model_lacks_are_refused(
    base: BaseModel, texts: Callable[[int], EpochTexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = tuple(
        m for m in find_linear_modules(base.model) if m.suffix not in ("q_proj", "v_proj")
    )
    monkeypatch.setattr(bank_module, "find_linear_modules", lambda _: fused)
    bank = Bank(base, slots=1, max_rank=8)
    recipe = dataclasses.replace(RECIPE, target_modules="query+value")
    with pytest.raises(
        ValueError, match=r"target_modules: 'query\+value' .* only down_proj, gate"
    ):
        bank.admit(0, recipe, texts(0), seed=0)
    bank.admit(0, dataclasses.replace(recipe, target_modules="attention"), texts(0), seed=0)


def test_a_token_that_the_model_does_not_know_is_refused(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    larger = dataclasses.replace(base, tokenizer=_with_a_word_more(base))
    bank = Bank(larger, slots=1, max_rank=8)
    with pytest.raises(ValueError, match=r"has the token 94; tiny knows tokens below 94"):
        bank.admit(0, RECIPE, lambda _: ["w1 unheard"], seed=0)
    bank.admit(0, RECIPE, texts(0), seed=0)


def _with_a_word_more(base: BaseModel) -> object:
    tokenizer = type(base.tokenizer)(
        tokenizer_object=base.tokenizer.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    tokenizer.add_tokens(["unheard"])
    return tokenizer


@pytest.mark.parametrize("failing", ["cover", "initialise"])
def test_an_admission_that_fails_half_way_is_undone(
    base: BaseModel,
    texts: Callable[[int], EpochTexts],
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    bank = make_bank(base, texts, [0, 2])

    def fail(*_arguments: object, **_more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        if failing == "cover":
            patched.setattr(bank._adapters, "cover", fail)
        else:
            patched.setattr(bank_module, "initialise", fail)
        with pytest.raises(torch.OutOfMemoryError):
            bank.admit(1, RECIPE, texts(1), seed=1)
    assert bank.step() == ()
    assert bank.progress(1).steps == 0
    bank.admit(1, RECIPE, texts(1), seed=1)


def test_a_state_of_another_shape_is_refused(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = make_bank(base, texts, [0])
    state = bank.snapshot(0)
    wrong = dataclasses.replace(state, second_moments=state.second_moments[:, 1:])
    with pytest.raises(ValueError, match=r"state: a tensor of \(1, \d+\) is not allowed"):
        bank.resume(1, wrong, texts(0))
    assert not bank._adapters.weights[bank._adapters.place(1)].any()
    bank.resume(1, state, texts(0))
