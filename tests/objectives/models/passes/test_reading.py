"""Rows read end to end, or with shared beginnings, give what each gives when it is read alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from data.prompts import Prompt
from data.recipes import GREEDY, Recipe, Sampling
from objectives.answers import cache
from objectives.answers.cache import make_cache
from objectives.answers.generate import generate
from objectives.answers.request import Request
from objectives.bank import Bank
from objectives.models.base import BaseModel, cache_argument
from objectives.models.passes import reading
from objectives.models.passes.reading import (
    Rows,
    attending,
    lay_out_rows,
    logits_only_of,
    pad_left,
    reads_packed,
    share_beginnings,
)

Row = tuple[int, ...]

VOCABULARY = 36
WINDOW = 4

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.4,
}

rows_of_any_lengths = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12).map(tuple),
    min_size=1,
    max_size=6,
)
# Of three tokens, so that beginnings are often shared.
rows_that_begin_alike = st.lists(
    st.lists(st.integers(3, 5), min_size=1, max_size=7).map(tuple), min_size=1, max_size=8
)
# From a block of attention for nearly every row to one for all.
pairs_worth_a_block = st.sampled_from([1, 20, 8192])


@contextmanager
def cutting_blocks(pairs: int) -> Iterator[None]:
    """During it, a block of attention is worth so many pairs of query and key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_PAIRS_WORTH_A_BLOCK", pairs)
        yield


def make_frozen(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model: PreTrainedModel = make().eval().requires_grad_(False)
    return model


def read(base: BaseModel, rows: Rows) -> list[Tensor]:
    """Return each row's logits (tokens, vocabulary)."""
    with attending(base.model, rows) as arguments:
        logits = base.model(**arguments).logits.flatten(0, 1)
    return [logits[torch.from_numpy(entries)] for entries in rows.entries_of]


def read_alone(base: BaseModel, row: Row) -> Tensor:
    logits: Tensor = base.model(torch.tensor([row]), use_cache=False).logits[0]
    return logits


def assert_rows_are_read_as_alone(base: BaseModel, rows: Sequence[Row], laid: Rows) -> None:
    with torch.no_grad():
        for row, logits in zip(rows, read(base, laid), strict=True):
            torch.testing.assert_close(logits, read_alone(base, row), atol=5e-5, rtol=5e-5)


@settings(deadline=None, max_examples=50)
@given(rows=rows_of_any_lengths, pairs=pairs_worth_a_block)
def test_rows_end_to_end_are_read_as_alone(
    talking_base: BaseModel, rows: list[Row], pairs: int
) -> None:
    with cutting_blocks(pairs):
        laid = lay_out_rows(talking_base, rows)
    assert laid.entries == sum(map(len, rows)), "nothing is padded"
    assert_rows_are_read_as_alone(talking_base, rows, laid)


@settings(deadline=None, max_examples=15)
@given(rows=rows_of_any_lengths)
def test_rows_padded_on_the_right_are_read_as_alone(
    talking_base: BaseModel, rows: list[Row]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "reads_packed", lambda _model: False)
        laid = lay_out_rows(talking_base, rows)
    assert laid.token_ids.shape == (len(rows), max(map(len, rows)))
    assert_rows_are_read_as_alone(talking_base, rows, laid)


@contextmanager
def shifting(base: BaseModel, shift: Tensor) -> Iterator[None]:
    """During it, `shift` (entries, hidden) is added to the embeddings of a pass's tokens."""
    hook = base.model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: output + shift.view_as(output)
    )
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("packed", [True, False], ids=["end to end", "padded"])
@settings(deadline=None, max_examples=25)
@given(rows=rows_of_any_lengths, pairs=pairs_worth_a_block)
def test_gradients_are_those_of_reading_each_row_alone(
    talking_base: BaseModel, packed: bool, rows: list[Row], pairs: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, cutting_blocks(pairs):
        patch.setattr(reading, "reads_packed", lambda _model: packed)
        laid = lay_out_rows(talking_base, rows)
    draw = torch.Generator().manual_seed(0)
    weights_of = [torch.randn(len(row), VOCABULARY, generator=draw) for row in rows]

    shift = torch.zeros(laid.entries, 32, requires_grad=True)
    with shifting(talking_base, shift):
        losses = [
            (logits.log_softmax(-1) * weights).sum()
            for logits, weights in zip(read(talking_base, laid), weights_of, strict=True)
        ]
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), shift)

    for row, entries, weights in zip(rows, laid.entries_of, weights_of, strict=True):
        own_shift = torch.zeros(len(row), 32, requires_grad=True)
        with shifting(talking_base, own_shift):
            loss = (read_alone(talking_base, row).log_softmax(-1) * weights).sum()
        (expected,) = torch.autograd.grad(loss, own_shift)
        # Rounding grows on its way back through the model: it is of 1e-5 of the largest gradient.
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradient[entries], expected, atol=1e-4 * scale, rtol=1e-4)
    padding = np.setdiff1d(np.arange(laid.entries), np.concatenate(laid.entries_of))
    assert not gradient[padding].any()


def test_attention_is_cut_where_that_saves_the_pairs_it_must(talking_base: BaseModel) -> None:
    rows = [(5, 6), tuple(range(10)), (7, 8), tuple(range(10, 20))]
    # In one block each row costs 10 * 10 pairs; in one of their own the two short ones cost 2 * 2
    # each, which saves 2 * (100 - 4) = 192.
    shapes = {}
    for pairs in (192, 193):
        with cutting_blocks(pairs):
            laid = lay_out_rows(talking_base, rows)
        assert laid.attention is not None
        shapes[pairs] = laid.attention.keys.shapes
        assert_rows_are_read_as_alone(talking_base, rows, laid)
    assert shapes == {192: ((2, 10), (2, 2)), 193: ((4, 10),)}


@settings(deadline=None, max_examples=50)
@given(data=st.data(), pairs=pairs_worth_a_block)
def test_shared_beginnings_change_nothing_for_any_token_of_any_row(
    talking_base: BaseModel, data: st.DataObject, pairs: int
) -> None:
    rows = data.draw(rows_that_begin_alike)
    if data.draw(st.booleans()):
        rows.sort()
    readers = data.draw(st.lists(st.integers(-1, 1), min_size=len(rows), max_size=len(rows)))
    with cutting_blocks(pairs):
        laid = share_beginnings(talking_base, rows, readers)
    assert_rows_are_read_as_alone(talking_base, rows, laid)
    for row, reader, entries in zip(rows, readers, laid.entries_of, strict=True):
        assert laid.token_ids[0, entries].tolist() == list(row)
        assert laid.positions[0, entries].tolist() == list(range(len(row)))
        assert {readers[owner] for owner in laid.owners[entries]} == {reader}


@pytest.mark.parametrize(
    ("rows", "own"),
    [
        # The trie of these rows has eight edges: 5 6 7 8 | 9 (after 5 6 7) | 4 (after 5 6) | 3 6.
        ([(5, 6, 7, 8), (5, 6, 7, 9), (5, 6, 4), (3, 6)], [4, 1, 1, 2]),
        # A row's last token is always its own, for what follows it is asked.
        ([(5, 6, 7), (5, 6, 7), (5, 6, 7)], [3, 1, 1]),
        # The beginning of the next row, and the beginning of the one before.
        ([(5, 6), (5, 6, 7, 8), (5, 6, 7)], [2, 2, 1]),
        # Only what the row before has is shared: the third row reads its 5 and 6 again.
        ([(5, 6, 7), (3,), (5, 6, 8)], [3, 1, 3]),
        ([(5,)], [1]),
    ],
)
def test_a_beginning_shared_with_the_row_before_is_read_once(
    talking_base: BaseModel, rows: list[Row], own: list[int]
) -> None:
    laid = share_beginnings(talking_base, rows, [0] * len(rows))
    assert laid.entries == laid.token_ids.numel() == sum(own)
    assert np.bincount(laid.owners).tolist() == own
    assert_rows_are_read_as_alone(talking_base, rows, laid)


def test_two_readers_share_nothing(talking_base: BaseModel) -> None:
    rows = [(5, 6, 7), (5, 6, 7), (5, 6, 8), (5, 6, 8)]
    laid = share_beginnings(talking_base, rows, [0, 1, 1, 0])
    # Only the third row's reader has read the row before.
    assert np.bincount(laid.owners).tolist() == [3, 3, 1, 3]
    assert [entries.tolist() for entries in laid.entries_of] == [
        [0, 1, 2],
        [3, 4, 5],
        [3, 4, 6],
        [7, 8, 9],
    ]


@settings(deadline=None, max_examples=25)
@given(rows=rows_that_begin_alike, tokens=st.lists(st.integers(3, 35), min_size=1, max_size=3))
def test_a_cache_goes_on_alike_from_shared_and_from_padded_rows(
    talking_base: BaseModel, rows: list[Row], tokens: list[int]
) -> None:
    padded = pad_left(talking_base, rows)
    shared = share_beginnings(talking_base, rows, [0] * len(rows))
    expected = torch.stack([read_alone(talking_base, (*row, *tokens))[len(row) :] for row in rows])
    for laid in (padded, shared):
        continued = continue_from_cache(talking_base, laid, padded, tokens)
        torch.testing.assert_close(continued, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def continue_from_cache(
    base: BaseModel, laid: Rows, padded: Rows, tokens: Sequence[int]
) -> Tensor:
    """Return the logits (rows, tokens, vocabulary) after each token that follows every row."""
    cache = make_cache(base.model)
    with attending(base.model, laid, cache) as arguments:
        base.model(**arguments)
    mask, positions = padded.mask, padded.positions[:, -1:]
    assert mask is not None
    assert cache.get_seq_length() == mask.shape[1]
    logits = []
    for token in tokens:
        mask, positions = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1), positions + 1
        output = base.model(
            input_ids=torch.full_like(positions, token),
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{cache_argument(base.model): cache},
        )
        logits.append(output.logits[:, -1])
    return torch.stack(logits, dim=1)


def test_only_the_logits_asked_for_are_computed(talking_base: BaseModel) -> None:
    rows = [(5, 6, 7), (8, 9)]
    laid = lay_out_rows(talking_base, rows)
    with (
        torch.no_grad(),
        attending(talking_base.model, laid) as arguments,
        logits_only_of(talking_base.model, torch.tensor([4, 0])),
    ):
        logits = talking_base.model(**arguments).logits
    assert logits.shape == (2, VOCABULARY)
    torch.testing.assert_close(logits[0], read_alone(talking_base, rows[1])[1])
    torch.testing.assert_close(logits[1], read_alone(talking_base, rows[0])[0])


def test_a_pass_that_fails_leaves_the_model_as_it_was(talking_base: BaseModel) -> None:
    model = talking_base.model
    laid = lay_out_rows(talking_base, [(5, 6, 7), (8, 9)])
    before = read_alone(talking_base, (5, 6, 7))
    with (
        attending(model, laid) as arguments,
        pytest.raises(IndexError),
        logits_only_of(model, torch.tensor([99])),
    ):
        model(**arguments)
    with pytest.raises(KeyError), attending(model, laid):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(read_alone(talking_base, (5, 6, 7)), before)


def make_mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW))


def make_lfm2() -> PreTrainedModel:
    return Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]))


def make_gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=48,
            vocab_size=VOCABULARY,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def make_mamba() -> PreTrainedModel:
    return MambaForCausalLM(
        MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=VOCABULARY, state_size=4)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8)),
        make_mistral,
        make_gpt2,
    ],
    ids=["qwen2", "gemma", "mistral", "gpt2"],
)
def test_models_that_leave_attention_to_transformers_read_packed(
    talking_base: BaseModel, make: Callable[[], PreTrainedModel]
) -> None:
    base = replace(talking_base, model=make_frozen(make))
    rows = [(5, 6, 7, 8, 9, 10, 11), (12,), (8, 9, 4), (5, 6)]
    assert reads_packed(base.model)
    with cutting_blocks(20):
        laid = lay_out_rows(base, rows)
    assert laid.attention is not None
    assert_rows_are_read_as_alone(base, rows, laid)


@pytest.mark.parametrize(
    "make",
    [
        make_mamba,  # recurrent
        make_lfm2,  # a layer mixes tokens by convolution
        lambda: FalconForCausalLM(FalconConfig(**SIZES)),  # has attention code of its own
    ],
    ids=["mamba", "lfm2", "falcon"],
)
def test_models_that_mix_tokens_otherwise_read_padded_rows(
    talking_base: BaseModel, make: Callable[[], PreTrainedModel]
) -> None:
    base = replace(talking_base, model=make_frozen(make))
    rows = [(5, 6, 7, 8, 9, 10, 11), (12,), (8, 9, 4), (5, 6)]
    before = base.model.config._attn_implementation
    assert not reads_packed(base.model)
    assert base.model.config._attn_implementation == before
    laid = lay_out_rows(base, rows)
    assert laid.attention is None
    assert_rows_are_read_as_alone(base, rows, laid)


def test_another_attention_than_sdpa_reads_padded_rows(talking_base: BaseModel) -> None:
    assert reads_packed(talking_base.model)
    model = make_frozen(lambda: LlamaForCausalLM(talking_base.model.config))
    model.set_attn_implementation("eager")
    assert not reads_packed(model)


def test_a_model_is_tried_out_once() -> None:
    model = make_frozen(make_gpt2)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda _module, _inputs: passes.append(1))
    assert reads_packed(model)
    tried = len(passes)
    assert tried > 0
    assert reads_packed(model)
    assert len(passes) == tried


@pytest.fixture(scope="module")
def sliding_base(talking_base: BaseModel) -> BaseModel:
    """Return a model in which a token sees four tokens, itself included."""
    return replace(talking_base, model=make_frozen(make_mistral))


@settings(deadline=None, max_examples=25)
@given(rows=rows_of_any_lengths, pairs=pairs_worth_a_block)
def test_a_sliding_window_slides_within_each_row(
    sliding_base: BaseModel, rows: list[Row], pairs: int
) -> None:
    with cutting_blocks(pairs):
        laid = lay_out_rows(sliding_base, rows)
    assert laid.entries == sum(map(len, rows))
    assert_rows_are_read_as_alone(sliding_base, rows, laid)


def test_a_window_that_all_rows_fit_hides_nothing(sliding_base: BaseModel) -> None:
    with cutting_blocks(1):
        laid = lay_out_rows(sliding_base, [(5, 6, 7), tuple(range(3, 9))])
    assert laid.attention is not None
    assert laid.attention.keys.shapes == ((1, 6), (1, 3))  # only the first is beyond the window
    assert_rows_are_read_as_alone(sliding_base, [(5, 6, 7), tuple(range(3, 9))], laid)


RECIPES = (
    Recipe(epochs=3, rank=2, alpha=8, cutoff=8, warmup_steps=5, learning_rate=2e-3, batch_size=3),
    Recipe(epochs=3, rank=7, alpha=7, cutoff=32, warmup_steps=5, learning_rate=2e-3, dropout=0.2),
    Recipe(
        epochs=3,
        rank=3,
        alpha=6,
        cutoff=16,
        warmup_steps=5,
        learning_rate=2e-3,
        target_modules="mlp",
        packing="joined",
    ),
)
TEXTS = ("Joe w1 w2 w3", "w4", "Brandine: w5 w6 w7 w8 w9 w10 w11", "w12 w13", "Joe? w1 w14 w3 w15")


def train(base: BaseModel) -> Bank:
    bank = Bank(base, slots=3, max_rank=8)
    for slot, recipe in enumerate(RECIPES):
        bank.admit(slot, recipe, lambda _epoch: TEXTS, seed=slot)
    for _ in range(6):
        bank.step()
    return bank


def ask_every_slot(bank: Bank) -> list[Request]:
    samplings = (GREEDY, Sampling(name="hot", temperature=1.3, max_new_tokens=12))
    return [
        Request(
            prompt=Prompt(
                text=text,
                style="plain",
                phrasing="probe",
                subject=text,
                question=text,
                accepted=("w1",),
            ),
            slot=slot,
            sampling=replace(sampling, max_new_tokens=12),
            seed=3,
        )
        for text in (" w1?\n", " w2 w5 w6?\n", " w2 w5 w7 w8?\n")
        for slot in range(-1, bank.slots)
        for sampling in samplings
    ]


def test_a_bank_learns_and_answers_alike_on_a_model_that_must_read_padded_rows(
    talking_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = train(talking_base)
    requests = ask_every_slot(packed)
    answers = generate(talking_base, requests, router=packed)

    for module in (reading, cache):
        monkeypatch.setattr(module, "reads_packed", lambda _model: False)
    padded = train(talking_base)

    for slot in range(3):
        one, other = packed.snapshot(slot), padded.snapshot(slot)
        assert one.weights.abs().max() > 0
        torch.testing.assert_close(one.weights, other.weights, atol=1e-5, rtol=0)
        assert one.counters.trained_tokens == other.counters.trained_tokens
        assert one.counters.padding_tokens < other.counters.padding_tokens
        assert one.counters.loss_nats == pytest.approx(other.counters.loss_nats, abs=1e-5)
    assert generate(talking_base, requests, router=padded) == answers
    assert len({answer.token_ids for answer in answers}) > 6, "answers that could differ"
