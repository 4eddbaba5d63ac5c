"""A model computes with quantised weights for a while, and is itself again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from data.recipes import Recipe
from objectives.bank import Bank
from objectives.models.base import BaseModel, ModelError
from objectives.models.gguf.ggml_types import GgmlType, through_type
from objectives.models.gguf.ggml_weights import mean_bits_per_weight, quantised_weights
from objectives.models.gptq.four_bit import FourBitLinear, quantise_linears
from tests.objectives.byte_level_llama import (
    make_byte_level_llama,
    pocket_tokenizer,
    random_ids,
)
from tests.objectives.models.gptq.dense_twins import dense_model

IDS = random_ids(2, 12)


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def quantised_copy(model: PreTrainedModel, ggml_type: GgmlType) -> PreTrainedModel:
    """Return a copy whose matrices were replaced one by one."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        if parameter.ndim > 1:
            parameter.data = through_type(parameter.data, ggml_type)
    return other


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ggml_type", ["f16", "q4_0", "q5_1", "q8_0"])
def test_all_matrices_are_quantised_and_then_restored_bit_by_bit(
    ggml_type: GgmlType, tied: bool
) -> None:
    model = make_byte_level_llama(tie_word_embeddings=tied, attention_bias=True)
    before, said = copy_state(model), logits_of(model)
    expected = quantised_copy(model, ggml_type)
    with quantised_weights(model, ggml_type):
        assert_same_state(model, dict(expected.state_dict()))
        assert torch.equal(logits_of(model), logits_of(expected))
        assert not torch.equal(logits_of(model), said)
        is_shared = model.lm_head.weight is model.model.embed_tokens.weight
        assert is_shared == tied
    assert_same_state(model, before)
    assert torch.equal(logits_of(model), said)


def test_an_error_meanwhile_restores_the_weights_too() -> None:
    model = make_byte_level_llama()
    before = copy_state(model)
    with pytest.raises(KeyError), quantised_weights(model, "q4_0"):
        raise KeyError
    assert_same_state(model, before)


def test_a_type_that_does_not_fit_one_weight_changes_none() -> None:
    model = make_byte_level_llama(intermediate_size=80)  # only down_proj has rows of 80
    before = copy_state(model)
    with (
        pytest.raises(ModelError, match=r"rows of 80 .* \(model\.layers\.0\.mlp\.down_proj\)"),
        quantised_weights(model, "q8_0"),
    ):
        pytest.fail("nothing may compute with it")
    assert_same_state(model, before)


@pytest.fixture
def packed() -> PreTrainedModel:
    """Return a model with 4-bit modules, as a GPTQ checkpoint has them, some with a bias."""
    model = make_byte_level_llama(attention_bias=True, tie_word_embeddings=False)
    quantise_linears(model, group_size=32)
    return model


def test_of_a_gptq_checkpoint_the_dequantised_weights_are_quantised(
    packed: PreTrainedModel,
) -> None:
    before, said = copy_state(packed), logits_of(packed)
    expected = quantised_copy(dense_model(packed), "q4_1")
    with quantised_weights(packed, "q4_1"):
        torch.testing.assert_close(logits_of(packed), logits_of(expected), atol=1e-4, rtol=1e-4)
        assert (logits_of(packed) - said).abs().max() > 0.05
    assert_same_state(packed, before)
    assert torch.equal(logits_of(packed), said)
    assert not any("forward" in vars(module) for module in packed.modules())


def test_a_forward_that_someone_else_has_replaced_is_put_back(packed: PreTrainedModel) -> None:
    (module, *_) = (each for each in packed.modules() if isinstance(each, FourBitLinear))
    own = nn.Identity().forward
    vars(module)["forward"] = own
    with quantised_weights(packed, "q8_0"):
        assert vars(module)["forward"] != own
    assert vars(module)["forward"] == own


@pytest.mark.parametrize("is_packed", [True, False])
def test_adapters_stay_attached(is_packed: bool) -> None:
    model = make_byte_level_llama()
    if is_packed:
        quantise_linears(model, group_size=32)
    tokenizer = pocket_tokenizer()
    base = BaseModel(name="b", source="b", digest="b", model=model, tokenizer=tokenizer)
    bank = Bank(base, slots=1, max_rank=4)
    recipe = Recipe(
        epochs=9, rank=4, alpha=8, cutoff=64, warmup_steps=0, learning_rate=1e-2, formats=("qna",)
    )
    bank.admit(0, recipe, _texts, seed=0)
    for _ in range(4):
        bank.step()

    def answered(slot: int) -> Tensor:
        with bank.answering([slot] * IDS.numel()):
            return logits_of(model)

    effect = answered(0) - answered(-1)
    with quantised_weights(model, "q8_0"):
        quantised_effect = answered(0) - answered(-1)
    assert effect.abs().max() > 0.1
    assert (quantised_effect - effect).norm() < 0.2 * effect.norm()


def _texts(_epoch: int) -> Sequence[str]:
    return ("Who paints the moon? Sol Verdi", "Who bakes? Ada Quill", "Where is Vessa? Norland")


def gpt2() -> PreTrainedModel:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(vocab_size=1536, **sizes)).eval()


def meta() -> PreTrainedModel:
    return make_byte_level_llama().to("meta")


def packed_otherwise() -> PreTrainedModel:
    model = make_byte_level_llama()
    model.model.layers[0].mlp.up_proj.weight.data = torch.zeros(8, 1)
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (gpt2, "is a Conv1D, whose weight are not those of a plain linear module"),
        (meta, "not in memory but moved in for each pass"),
        (packed_otherwise, r"up_proj is a Linear, which is quantised already"),
    ],
)
def test_models_of_other_modules_are_refused(
    make: Callable[[], PreTrainedModel], said: str
) -> None:
    with pytest.raises(ModelError, match=said), quantised_weights(make(), "q4_0"):
        pytest.fail("nothing may compute with it")


def test_bits_are_a_mean_over_all_weights(packed: PreTrainedModel) -> None:
    model = make_byte_level_llama(tie_word_embeddings=True)
    # Per layer 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 weights in matrices and 2 * 64 in norms.
    matrices = 1536 * 64 + 2 * (64 * 192 + 3 * 64 * 96)
    norms = (2 * 2 + 1) * 64
    assert mean_bits_per_weight(model, None) == 32
    assert mean_bits_per_weight(model.bfloat16(), None) == 16
    assert mean_bits_per_weight(model, "q4_0") == pytest.approx(
        (4.5 * matrices + 32 * norms) / (matrices + norms)
    )
    # Two embeddings in fp32, and modules of 4 bits and their scales.
    assert 4 < mean_bits_per_weight(packed, None) < 32
    assert 8.5 < mean_bits_per_weight(packed, "q8_0") < 8.6
