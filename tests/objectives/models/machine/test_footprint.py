"""The estimate of memory is that of what really happens, byte for byte or within bounds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, LlamaConfig, Qwen2Config, Qwen2ForCausalLM

from data.formats import epoch_documents
from data.model_profiles import load_profiles
from data.prompts import fact_prompts
from data.recipes import GREEDY, Recipe
from data.scenarios import load_scenario
from objectives.answers.generate import generate
from objectives.answers.request import Request
from objectives.bank import Bank
from objectives.bank.batches import count_predicted, cut_examples, make_batches
from objectives.models.base import BaseModel, ModelError
from objectives.models.gptq.four_bit import quantise_linears
from objectives.models.load import load_base_model
from objectives.models.machine.footprint import (
    MOST_ROWS,
    Demand,
    Footprint,
    Storing,
    WeightBytes,
    config_of,
    estimate,
    shape_of,
    shape_of_model,
    storing_of,
)
from objectives.models.sources import POCKET

RANK = 8


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pocket(request: pytest.FixtureRequest) -> BaseModel:
    torch.set_num_threads(1)
    return load_base_model(POCKET, device="cpu", dtype=request.param)


def peak_bytes(work: Callable[[], object]) -> int:
    """Return how much more memory than before some work has at most, on a CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    kineto = profiled.profiler.kineto_results
    assert kineto is not None
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in kineto.events()
        if event.name() == "[memory]"
    )
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights of a model, packed or not."""
    frequencies = ("inv_freq", "original_inv_freq")  # of positions, computed when it is made
    return sum(parameter.nbytes for parameter in model.parameters()) + sum(
        buffer.nbytes
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] not in frequencies
    )


def full_bank(
    base: BaseModel, *, slots: int, batch_size: int, checkpointing: bool
) -> tuple[Bank, int]:
    """Return a bank that trains the 2023 Oscars, and the tokens of a slot's first step."""
    recipe = Recipe(
        epochs=2,
        rank=RANK,
        alpha=16,
        cutoff=96,
        warmup_steps=4,
        learning_rate=1e-3,
        batch_size=batch_size,
    )
    scenario = load_scenario(None)

    def texts(seed: int, epoch: int) -> list[str]:
        documents = epoch_documents(scenario.facts, (), recipe, seed=seed, epoch=epoch)
        return [document.text for document in documents]

    bank = Bank(base, slots=slots, max_rank=RANK, gradient_checkpointing=checkpointing)
    for slot in range(slots):
        bank.admit(slot, recipe, partial(texts, 0), seed=slot)
    documents = map(base.encode_document, texts(0, 0))
    batches = make_batches(cut_examples(documents, cutoff=96, packing="separate"), batch_size)
    return bank, count_predicted(batches[0])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("slots", "batch_size"), [(1, 4), (4, 4), (8, 16)])
def test_a_training_pass_takes_what_is_estimated_within_a_quarter(
    pocket: BaseModel, slots: int, batch_size: int, checkpointing: bool
) -> None:
    bank, tokens = full_bank(
        pocket, slots=slots, batch_size=batch_size, checkpointing=checkpointing
    )
    measured = peak_bytes(bank.step)
    footprint = estimate(
        shape_of(pocket.model.config),
        Storing(dtype=pocket.model.dtype),
        Demand(
            rank=RANK,
            step_tokens=tokens,
            prompt_tokens=1,
            answer_tokens=1,
            gradient_checkpointing=checkpointing,
        ),
    )
    expected = slots * (footprint.activations + footprint.logits)
    print(f"estimated {expected:,}, measured {measured:,}: {expected / measured:.2f}")
    assert expected == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize(
    ("storing", "words"),
    [
        (Storing(dtype=torch.bfloat16), "bfloat16"),
        (
            Storing(dtype=torch.float16, group_size=128),
            "4 bits in groups of 128, the rest float16",
        ),
        (Storing(dtype=torch.float32, group_size=-1), "4 bits, the rest float32"),
    ],
)
def test_how_a_model_is_held_is_said_in_words(storing: Storing, words: str) -> None:
    assert storing.words == words


def test_training_in_four_bits_takes_a_dense_copy_of_one_module_besides() -> None:
    base = load_base_model(POCKET, device="cpu", dtype="bfloat16")
    shape = shape_of(base.model.config)
    quantise_linears(base.model, group_size=32)
    assert shape_of_model(base.model) == shape, "packed or not"
    storing = storing_of(base.model)
    assert storing == Storing(dtype=torch.bfloat16, group_size=32)
    bank, tokens = full_bank(base, slots=1, batch_size=2, checkpointing=False)
    demand = Demand(rank=RANK, step_tokens=tokens, prompt_tokens=1, answer_tokens=1)
    footprint = estimate(shape, storing, demand)
    assert footprint.passing == 128 * 384 * 3, "bfloat16, and a byte for each code"
    expected = footprint.activations + footprint.logits + footprint.passing
    assert expected == pytest.approx(peak_bytes(bank.step), rel=0.25)


def test_a_slot_of_a_bank_holds_what_is_estimated(pocket: BaseModel) -> None:
    shape = shape_of(pocket.model.config)
    demand = Demand(rank=RANK, step_tokens=1, prompt_tokens=1, answer_tokens=1)
    adapter = estimate(shape, Storing(dtype=torch.float32), demand).adapter
    for slots in (1, 5):
        measured = peak_bytes(partial(Bank, pocket, slots=slots, max_rank=RANK))
        assert slots * adapter <= measured <= slots * adapter + 16 * slots, "and its scale"


def test_asking_takes_what_is_estimated_within_a_quarter(pocket: BaseModel) -> None:
    prompts = fact_prompts(load_scenario(None).facts, ("trained", "validation", "test"))[:240]
    requests = [Request(prompt=p, slot=-1, sampling=GREEDY, seed=0) for p in prompts]
    answered = generate(pocket, requests)
    measured = peak_bytes(partial(generate, pocket, requests))
    footprint = estimate(
        shape_of(pocket.model.config),
        Storing(dtype=pocket.model.dtype),
        Demand(
            rank=RANK,
            step_tokens=1,
            prompt_tokens=max(len(pocket.encode_prompt(p.text)) for p in prompts),
            # Answers are short here; the estimate for a study is made for the longest allowed.
            answer_tokens=max(len(each.token_ids) for each in answered),
        ),
    )
    expected = len(requests) * footprint.row
    print(f"estimated {expected:,}, measured {measured:,}: {expected / measured:.2f}")
    assert expected == pytest.approx(measured, rel=0.25)


def test_dense_weights_are_exact(pocket: BaseModel) -> None:
    demand = Demand(rank=RANK, step_tokens=1, prompt_tokens=1, answer_tokens=1)
    shape = shape_of(pocket.model.config)
    weights = estimate(shape, Storing(dtype=pocket.model.dtype), demand).weights
    assert weights.total == held_bytes(pocket.model)
    assert weights.head == 0, "it is the embeddings"


@pytest.mark.parametrize("group_size", [32, 128])
def test_four_bit_weights_are_exact(group_size: int) -> None:
    model = copy.deepcopy(load_base_model(POCKET, device="cpu", dtype="bfloat16").model)
    shape = shape_of(model.config)
    quantise_linears(model, group_size=group_size)
    storing = Storing(dtype=torch.bfloat16, group_size=group_size)
    demand = Demand(rank=RANK, step_tokens=1, prompt_tokens=1, answer_tokens=1)
    assert estimate(shape, storing, demand).weights.total == held_bytes(model)


def test_biases_of_four_bit_modules_are_halves() -> None:
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    dense = held_bytes(model)
    # Per layer: q, k, v and o of 64 to 64, 32, 32, 64, the first three with biases; gate and up of
    # 64 to 128, down of 128 to 64.
    numbers = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    biases = 2 * (64 + 32 + 32)
    packed = numbers // 2
    groups_and_outputs = 2 * (2 * (64 + 32 + 32 + 64 + 128 + 128) + 4 * 64)
    scales_and_zeros = groups_and_outputs * 5 // 2
    groups_of_inputs = 2 * 4 * (6 * 64 + 128)
    expected = dense - 4 * numbers - 2 * biases + packed + scales_and_zeros + groups_of_inputs
    demand = Demand(rank=RANK, step_tokens=1, prompt_tokens=1, answer_tokens=1)
    storing = Storing(dtype=torch.float32, group_size=32)
    weights = estimate(shape_of(config), storing, demand).weights
    assert weights.total == expected
    assert weights.head == weights.embeddings == 4 * 64 * 96


@pytest.mark.parametrize("name", [*load_profiles()])
def test_the_shape_of_a_model_known_by_name_has_its_parameters(name: str) -> None:
    profile = load_profiles()[name]
    shape = shape_of(config_of(profile))
    assert shape.parameters == profile.parameters
    demand = Demand(rank=RANK, step_tokens=1, prompt_tokens=1, answer_tokens=1)
    storing = Storing(dtype=torch.bfloat16, group_size=profile.group_size)
    weights = estimate(shape, storing, demand).weights
    # The profile leaves out what 4-bit modules have beside codes, scales and zero points.
    assert weights.total == pytest.approx(profile.weight_bytes(), rel=0.002)


def test_the_shape_of_the_13b_llama_is_known_without_loading_it() -> None:
    config = LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        vocab_size=32000,
        tie_word_embeddings=False,
    )
    shape = shape_of(config)
    assert shape.parameters == 13_015_864_320, "as its makers counted"
    storing = Storing(dtype=torch.bfloat16, group_size=128)
    demand = Demand(rank=16, step_tokens=120, prompt_tokens=40, answer_tokens=48)
    footprint = estimate(shape, storing, demand)
    assert footprint.weights.total / 1e9 == pytest.approx(7.26, abs=0.05)
    # Rank 16 of all modules: 62,586,880 weights, four tensors of them in fp32.
    assert footprint.adapter == 16 * 62_586_880


def test_a_model_without_modules_for_adapters_is_refused() -> None:
    config = AutoConfig.for_model("bert", is_decoder=True, hidden_size=32, num_hidden_layers=1)
    config.num_attention_heads = 2
    with pytest.raises(ModelError, match="target modules"):
        shape_of(config)


def test_a_model_that_is_no_causal_one_is_refused() -> None:
    with pytest.raises(ModelError, match=r"memory cannot be estimated.*'clip'"):
        shape_of(AutoConfig.for_model("clip"))


footprints = st.builds(
    Footprint,
    weights=st.builds(
        WeightBytes,
        linears=st.integers(0, 2**40),
        embeddings=st.integers(0, 2**30),
        head=st.integers(0, 2**30),
        other=st.integers(0, 2**20),
    ),
    adapter=st.integers(1, 2**32),
    activations=st.integers(1, 2**36),
    logits=st.integers(1, 2**32),
    passing=st.integers(0, 2**30),
    row=st.integers(1, 2**30),
)


@given(footprint=footprints, limit=st.integers(0, 2**42))
def test_as_many_slots_fit_as_can_and_no_more(footprint: Footprint, limit: int) -> None:
    slots = footprint.slots_within(limit)
    assert slots == 0 or footprint.training(slots) <= limit
    assert footprint.training(slots + 1) > limit


@given(footprint=footprints, limit=st.integers(0, 2**42), slots=st.integers(1, 64))
def test_rows_are_halved_until_they_fit(footprint: Footprint, limit: int, slots: int) -> None:
    rows = footprint.rows_within(limit, slots=slots)
    assert rows == 0 or footprint.asking(slots, rows) <= limit
    assert rows == MOST_ROWS or footprint.asking(slots, max(1, 2 * rows)) > limit


@given(footprint=footprints)
def test_the_least_is_enough_for_one_slot_and_one_row(footprint: Footprint) -> None:
    assert footprint.slots_within(footprint.least) >= 1
    assert footprint.rows_within(footprint.least, slots=1) >= 1
    assert not (
        footprint.slots_within(footprint.least - 1)
        and footprint.rows_within(footprint.least - 1, slots=1)
    )
