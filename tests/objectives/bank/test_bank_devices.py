"""A bank trains and answers in a model on several devices as in the same model on one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor

from data.recipes import Recipe
from objectives.bank import Bank
from objectives.models.base import BaseModel
from objectives.models.gptq.four_bit import FourBitLinear, quantise_linears
from objectives.models.machine.placement import devices_of, is_offloaded
from tests.objectives.pretend_devices import MixedDevicesError, PretendDevices, spread

EpochTexts = Callable[[int], Sequence[str]]

RECIPE = Recipe(epochs=3, rank=4, alpha=8, cutoff=64, warmup_steps=4, learning_rate=3e-3)
RECIPES = (
    RECIPE,
    dataclasses.replace(RECIPE, rank=8, rslora=True, batch_size=2),
    dataclasses.replace(RECIPE, rank=1, target_modules="mlp", packing="joined"),
    dataclasses.replace(RECIPE, rank=3, target_modules="query+value", cutoff=9),
)

ONE_GPU = {"": "cuda:0"}
TWO_GPUS = {
    "model.embed_tokens": 0,
    "model.layers.0": 0,
    "model.layers.1": 1,
    "model.norm": 1,
    "model.rotary_emb": 1,
    "lm_head": 1,
}
A_GPU_AND_MAIN_MEMORY = {
    name: "cpu" if place == 1 else "cuda:0" for name, place in TWO_GPUS.items()
}
MAIN_MEMORY_AND_A_DISK = {
    name: "disk" if place == 1 else "cpu" for name, place in TWO_GPUS.items()
}


@pytest.fixture
def pretended() -> Iterator[None]:
    with PretendDevices():
        yield


@pytest.fixture(scope="module")
def four_bit_base(base: BaseModel) -> BaseModel:
    """Return the shared model with its linear modules in 4 bits."""
    model = copy.deepcopy(base.model)
    quantise_linears(model, group_size=16)
    return dataclasses.replace(base, model=model)


def train(
    base: BaseModel,
    texts: Callable[[int], EpochTexts],
    recipes: Sequence[Recipe] = RECIPES,
    *,
    gradient_checkpointing: bool = False,
) -> Bank:
    """Return a bank that has taken five steps; what a pass cannot do is raised."""
    bank = Bank(
        base,
        slots=len(recipes),
        max_rank=8,
        gradient_checkpointing=gradient_checkpointing,
        halves_when_full=False,
    )
    for slot, recipe in enumerate(recipes):
        bank.admit(slot, recipe, texts(slot), seed=slot)
    for _ in range(5):
        bank.step()
    return bank


def read(bank: Bank, token_ids: Tensor) -> Tensor:
    """Return the logits of rows that are read by slots 0, 1, ... and the base, in main memory."""
    slots = [slot for row in range(len(token_ids)) for slot in [row % 5 - 1] * token_ids.shape[1]]
    with torch.no_grad(), bank.answering(slots):
        logits: Tensor = bank.base.model(token_ids.to(bank.base.device)).logits
    return logits.cpu()


def assert_equal_banks(one: Bank, other: Bank) -> None:
    """Require the same losses and adapters, to the last bit."""
    for slot in range(one.slots):
        assert one.progress(slot) == other.progress(slot)
        for name, pair in one.matrices(slot).items():
            for mine, others in zip(pair, other.matrices(slot)[name], strict=True):
                assert torch.equal(mine.cpu(), others.cpu()), (slot, name)


def test_pretended_devices_do_not_mix(pretended: None) -> None:
    one, other = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1")
    with pytest.raises(MixedDevicesError, match=r"cuda:0.*cuda:1"):
        one + other
    with pytest.raises(MixedDevicesError, match=r"cpu.*cuda:1"):
        other + torch.ones(3)
    assert (one + other.to("cuda:0")).tolist() == [2, 2, 2]


@pytest.mark.parametrize("kind", ["base", "four_bit_base"])
def test_two_gpus_train_and_answer_as_one(
    kind: str,
    pretended: None,
    texts: Callable[[int], EpochTexts],
    token_ids: Tensor,
    request: pytest.FixtureRequest,
) -> None:
    shared: BaseModel = request.getfixturevalue(kind)
    base = spread(shared, TWO_GPUS)
    assert devices_of(base.model) == (torch.device("cuda:0"), torch.device("cuda:1"))
    one, two = train(spread(shared, ONE_GPU), texts), train(base, texts)
    assert_equal_banks(one, two)
    assert torch.equal(read(one, token_ids), read(two, token_ids))
    assert not torch.equal(read(two, token_ids)[0], read(two, token_ids)[1])


def test_gpus_train_what_main_memory_does(
    base: BaseModel, pretended: None, texts: Callable[[int], EpochTexts]
) -> None:
    here, there = train(base, texts), train(spread(base, TWO_GPUS), texts)
    for slot in range(here.slots):
        for name, pair in here.matrices(slot).items():
            for mine, others in zip(pair, there.matrices(slot)[name], strict=True):
                torch.testing.assert_close(mine, others.cpu(), atol=2e-5, rtol=0)


def test_dropout_is_the_same_wherever_a_layer_is(
    base: BaseModel,
    pretended: None,
    texts: Callable[[int], EpochTexts],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = torch.Generator
    monkeypatch.setattr("torch.Generator", lambda _device=None: draws())
    recipes = [dataclasses.replace(recipe, dropout=0.3) for recipe in RECIPES[:2]]
    one, two = (train(spread(base, places), texts, recipes) for places in (ONE_GPU, TWO_GPUS))
    assert_equal_banks(one, two)


@pytest.mark.parametrize("kind", ["base", "four_bit_base"])
def test_weights_that_wait_in_main_memory_train_as_those_on_the_gpu(
    kind: str,
    pretended: None,
    texts: Callable[[int], EpochTexts],
    token_ids: Tensor,
    request: pytest.FixtureRequest,
) -> None:
    shared: BaseModel = request.getfixturevalue(kind)
    base = spread(shared, A_GPU_AND_MAIN_MEMORY)
    assert is_offloaded(base.model)
    assert devices_of(base.model) == (torch.device("cuda:0"),)
    whole, offloaded = train(spread(shared, ONE_GPU), texts), train(base, texts)
    assert_equal_banks(whole, offloaded)
    assert torch.equal(read(whole, token_ids), read(offloaded, token_ids))


def test_layers_are_computed_again_where_weights_wait_in_main_memory(
    base: BaseModel, pretended: None, texts: Callable[[int], EpochTexts]
) -> None:
    for places, times in ((ONE_GPU, 1), (A_GPU_AND_MAIN_MEMORY, 2)):
        spread_base = spread(base, places)
        bank = Bank(spread_base, slots=1, max_rank=4)
        bank.admit(0, RECIPE, texts(0), seed=0)
        # What is tried out on the model before the first step is not counted.
        bank.step()
        passes: list[None] = []
        mlp = spread_base.model.model.layers[1].mlp
        mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(None))
        bank.step()
        assert len(passes) == times


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["base", "four_bit_base"])
def test_weights_on_a_disk_train_as_those_in_memory(
    kind: str,
    gradient_checkpointing: bool,
    texts: Callable[[int], EpochTexts],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    shared: BaseModel = request.getfixturevalue(kind)
    model = copy.deepcopy(shared.model)
    dispatch_model(
        model,
        MAIN_MEMORY_AND_A_DISK,
        main_device="cpu",
        offload_dir=tmp_path,
        offload_buffers=True,
        skip_keys=list(model._skip_keys_device_placement),
    )
    linear = model.model.layers[1].mlp.up_proj
    weights = linear.qweight if isinstance(linear, FourBitLinear) else linear.weight
    assert weights.is_meta, "between passes it has none"
    held, on_disk = (
        train(base, texts, gradient_checkpointing=gradient_checkpointing)
        for base in (shared, dataclasses.replace(shared, model=model))
    )
    assert_equal_banks(held, on_disk)
