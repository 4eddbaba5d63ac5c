"""Gradient checkpointing saves memory, changes no number, and leaves the base as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedModel,
)

from data.recipes import Recipe
from objectives.bank import Bank
from objectives.models.base import BaseModel, ModelError
from objectives.models.passes.recomputing import recomputing

TEXTS = ("Joe w1 w2 w3", "w4", "Brandine: w5 w6 w7 w8 w9 w10 w11", "w12 w13", "Joe? w1 w14 w3 w15")

PLAIN = Recipe(epochs=9, rank=2, alpha=8, cutoff=32, warmup_steps=3, learning_rate=3e-3)
# Several ranks, so that a pass has several groups of adapters; some with dropout.
RECIPES = (
    PLAIN,
    replace(PLAIN, rank=7, dropout=0.2, batch_size=2),
    replace(PLAIN, rank=1, dropout=0.5, target_modules="mlp"),
    replace(PLAIN, rank=5, target_modules="attention", packing="joined"),
)


def fill(base: BaseModel, *, gradient_checkpointing: bool) -> Bank:
    bank = Bank(base, slots=4, max_rank=8, gradient_checkpointing=gradient_checkpointing)
    for slot, recipe in enumerate(RECIPES):
        bank.admit(slot, recipe, lambda _epoch: TEXTS, seed=slot)
    return bank


@pytest.fixture(scope="module")
def base(talking_base: BaseModel) -> BaseModel:
    """Return a base of this file's own, with dropout that is off as long as it evaluates."""
    config = copy.deepcopy(talking_base.model.config)
    config.attention_dropout = 0.5
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return replace(talking_base, model=model)


def test_weights_are_those_of_keeping_everything_even_with_dropout(
    base: BaseModel,
) -> None:
    kept, recomputed = (fill(base, gradient_checkpointing=on) for on in (False, True))
    generator = torch.get_rng_state()
    for _ in range(6):
        assert kept.step() == recomputed.step()
    assert torch.equal(torch.get_rng_state(), generator), "the base's own dropout drew nothing"
    for slot in range(len(RECIPES)):
        one, other = kept.snapshot(slot), recomputed.snapshot(slot)
        assert one.counters.loss_nats == pytest.approx(other.counters.loss_nats, abs=1e-6)
        torch.testing.assert_close(one.weights, other.weights, atol=1e-6, rtol=0)
        torch.testing.assert_close(one.first_moments, other.first_moments, atol=1e-6, rtol=0)


def test_every_layer_is_read_a_second_time(base: BaseModel) -> None:
    read: list[int] = []

    def note(number: int, *_: object) -> None:
        read.append(number)

    hooks = [
        layer.self_attn.register_forward_pre_hook(partial(note, number))
        for number, layer in enumerate(base.model.model.layers)
    ]
    fill(base, gradient_checkpointing=False).step()
    once = list(read)
    read.clear()
    fill(base, gradient_checkpointing=True).step()
    for hook in hooks:
        hook.remove()
    assert once == [0, 1]
    # Forwards, and then backwards one layer after the other from the last on.
    assert read == [0, 1, 1, 0]


def test_less_is_kept_for_the_backward_pass(base: BaseModel) -> None:
    kept = count_bytes_kept(lambda: fill(base, gradient_checkpointing=False).step())
    recomputed = count_bytes_kept(lambda: fill(base, gradient_checkpointing=True).step())
    # What is left are the inputs of the two layers, and the logits.
    assert recomputed < kept / 5


def count_bytes_kept(work: Callable[[], object]) -> int:
    """Return the bytes of all different tensors that autograd keeps during `work`."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor  # alive, so that no address comes again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(tensor.nbytes for tensor in kept.values())


def test_the_base_goes_on_evaluating(base: BaseModel) -> None:
    model = base.model
    fill(base, gradient_checkpointing=True).step()
    assert not any(module.training for module in model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    with pytest.raises(KeyError), recomputing(model):
        raise KeyError
    assert not any(module.training for module in model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_no_hooks_are_left(base: BaseModel) -> None:
    bank = fill(base, gradient_checkpointing=True)
    for _ in range(2):
        bank.step()
    assert not any(module._forward_hooks for module in base.model.modules())
    assert not base.model(torch.tensor([[1, 5]]), use_cache=False).logits.requires_grad


def test_the_bases_own_dropout_stays_off(base: BaseModel) -> None:
    token_ids = torch.tensor([[1, 5, 6, 7, 8, 9]])
    model = base.model
    expected = model(token_ids, use_cache=False).logits
    with recomputing(model):
        logits = model(token_ids, use_cache=False).logits
    assert torch.equal(logits, expected)
    model.train()
    forgotten = model(token_ids, use_cache=False).logits
    model.eval()
    assert not torch.allclose(forgotten, expected, atol=0.1), "dropout that could be seen"


def test_a_model_whose_layers_cannot_be_recomputed_is_refused() -> None:
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_embd=8, n_layer=1, n_head=1, vocab_size=9))
    with (
        pytest.raises(ModelError, match="gradient_checkpointing: OpenAIGPTLMHeadModel does not"),
        recomputing(model),
    ):
        pass


class WithOwnLayers(PreTrainedModel):  # type: ignore[misc]
    """A model with modules for adapters, in layers that transformers could not compute again."""

    config_class = LlamaConfig

    def __init__(self) -> None:
        super().__init__(LlamaConfig())
        names = ("q_proj", "up_proj")
        layer = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in names})
        self.layers = torch.nn.ModuleList([layer])
        self.embed_tokens = torch.nn.Embedding(2, 2)


def test_a_bank_on_such_a_model_is_refused_before_anything_is_trained(base: BaseModel) -> None:
    bare = replace(base, model=WithOwnLayers())
    assert Bank(bare, slots=1, max_rank=1).slots == 1
    with pytest.raises(ModelError, match="gradient_checkpointing: WithOwnLayers does not"):
        Bank(bare, slots=1, max_rank=1, gradient_checkpointing=True)
