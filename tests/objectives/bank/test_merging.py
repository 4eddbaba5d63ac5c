"""A merged model is, in plain transformers, what base and adapter are together."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from data.recipes import Recipe
from objectives.bank import Bank, export_adapter, merging
from objectives.bank.merging import merge_adapter, save_merged
from objectives.models.base import BaseModel, ModelError
from objectives.models.gptq.four_bit import FourBitLinear, quantise_linears

EpochTexts = Callable[[int], Sequence[str]]

RECIPE = Recipe(epochs=9, rank=4, alpha=8, cutoff=64, warmup_steps=0, learning_rate=1e-2)


@pytest.fixture
def own_base(base: BaseModel) -> BaseModel:
    """Return a model that a test may change."""
    return dataclasses.replace(base, model=copy.deepcopy(base.model))


def train(base: BaseModel, epoch_texts: EpochTexts, folder: Path, recipe: Recipe = RECIPE) -> Bank:
    """Return a bank with a trained adapter in its slot 0, which is exported to a folder."""
    bank = Bank(base, slots=1, max_rank=recipe.rank)
    bank.admit(0, recipe, epoch_texts, seed=3)
    for _ in range(6):
        bank.step()
    export_adapter(bank, 0, folder)
    return bank


def logits_with_adapter(bank: Bank, token_ids: Tensor) -> Tensor:
    with torch.no_grad(), bank.answering([0] * token_ids.numel()):
        logits: Tensor = bank.base.model(token_ids).logits
    return logits


def logits_of_folder(folder: Path, token_ids: Tensor) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        logits: Tensor = model(token_ids).logits
    return logits


def merge(base: BaseModel, adapter: Path, folder: Path) -> bool:
    was_quantised = merge_adapter(base, adapter)
    folder.mkdir()
    save_merged(base, folder)
    return was_quantised


@pytest.mark.parametrize(
    "changes", [{}, {"rslora": True, "rank": 8}, {"target_modules": "mlp", "alpha": 2.5}]
)
def test_a_merged_model_answers_in_transformers_as_in_the_bank(
    own_base: BaseModel,
    texts: Callable[[int], EpochTexts],
    token_ids: Tensor,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    recipe = dataclasses.replace(RECIPE, **changes)
    bank = train(own_base, texts(0), tmp_path / "adapter", recipe)
    expected = logits_with_adapter(bank, token_ids)
    with torch.no_grad():
        untouched = own_base.model(token_ids).logits
    assert (expected - untouched).abs().max() > 0.1, "without a change equality shows nothing"
    assert not merge(own_base, tmp_path / "adapter", tmp_path / "merged")
    found = logits_of_folder(tmp_path / "merged", token_ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("w1 w2").input_ids == own_base.tokenizer("w1 w2").input_ids


def test_others_may_read_the_weights_as_they_may_read_the_settings(
    own_base: BaseModel, tmp_path: Path
) -> None:
    save_merged(own_base, tmp_path)
    written = {path.suffix: path.stat().st_mode for path in tmp_path.iterdir()}
    (tmp_path / "ordinary").touch()
    assert written[".safetensors"] == written[".json"] == (tmp_path / "ordinary").stat().st_mode


def test_sums_are_rounded_once_to_the_bases_type(
    own_base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path
) -> None:
    train(own_base, texts(0), tmp_path / "adapter")
    exact = copy.deepcopy(own_base)
    merge_adapter(exact, tmp_path / "adapter")
    own_base.model.to(torch.bfloat16)
    rounded_base = {name: each.float() for name, each in own_base.model.named_parameters()}
    merge(own_base, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16
    name = "model.layers.0.self_attn.q_proj.weight"
    change = exact.model.get_parameter(name) - original(exact, name, tmp_path / "adapter")
    expected = (rounded_base[name] + change).to(torch.bfloat16)
    # What the change is, is known to fp32's digits only: one step of bfloat16 may fall otherwise.
    steps = (merged.get_parameter(name).float() - expected.float()).abs()
    assert (steps > 0).float().mean() < 0.01
    assert not torch.equal(expected.float(), rounded_base[name])


def original(merged: BaseModel, name: str, adapter: Path) -> Tensor:
    """Return a weight as it was before the merge, by the adapter's own file."""
    key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
    tensors = load_file(adapter / "adapter_model.safetensors")
    down, up = (tensors[key.format(side)] for side in "AB")
    scale = RECIPE.alpha / RECIPE.rank
    weight: Tensor = merged.model.get_parameter(name) - scale * up @ down
    return weight


def test_tied_embeddings_stay_tied(
    base: BaseModel, texts: Callable[[int], EpochTexts], token_ids: Tensor, tmp_path: Path
) -> None:
    model = copy.deepcopy(base.model)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    own_base = dataclasses.replace(base, model=model)
    bank = train(own_base, texts(1), tmp_path / "adapter")
    expected = logits_with_adapter(bank, token_ids)
    merge(own_base, tmp_path / "adapter", tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged/model.safetensors")
    found = logits_of_folder(tmp_path / "merged", token_ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_four_bit_base_becomes_a_dense_model_of_halves(
    own_base: BaseModel, texts: Callable[[int], EpochTexts], token_ids: Tensor, tmp_path: Path
) -> None:
    quantise_linears(own_base.model, group_size=16)
    recipe = dataclasses.replace(RECIPE, target_modules="attention")
    bank = train(own_base, texts(2), tmp_path / "adapter", recipe)
    expected = logits_with_adapter(bank, token_ids)
    assert merge(own_base, tmp_path / "adapter", tmp_path / "merged")
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert config["dtype"] == "float16"
    assert "quantization_config" not in config
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert not any(isinstance(module, FourBitLinear) for module in merged.modules())
    with torch.no_grad():
        found = merged(token_ids).logits
    # Halves have 11 bits; logits here reach 10.
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.01)


def test_weights_that_stand_the_other_way_round_are_merged_so(
    base: BaseModel, texts: Callable[[int], EpochTexts], token_ids: Tensor, tmp_path: Path
) -> None:
    config = GPT2Config(
        vocab_size=len(base.tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64
    )
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    gpt2 = dataclasses.replace(base, model=model)
    bank = train(gpt2, texts(0), tmp_path / "adapter")
    expected = logits_with_adapter(bank, token_ids)
    with torch.no_grad():
        assert (expected - model(token_ids).logits).abs().max() > 0.1
    merge(gpt2, tmp_path / "adapter", tmp_path / "merged")
    found = logits_of_folder(tmp_path / "merged", token_ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_large_model_is_written_in_several_files(
    own_base: BaseModel,
    texts: Callable[[int], EpochTexts],
    token_ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank = train(own_base, texts(0), tmp_path / "adapter")
    expected = logits_with_adapter(bank, token_ids)
    monkeypatch.setattr(merging, "_LARGEST_SHARD", "30KB")
    merge(own_base, tmp_path / "adapter", tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 2
    found = logits_of_folder(tmp_path / "merged", token_ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_nothing_is_merged_into_another_base_or_into_unknown_weights(
    own_base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path
) -> None:
    class Opaque(nn.Module):
        in_features = out_features = 32

    train(own_base, texts(0), tmp_path / "adapter")
    before = copy.deepcopy(own_base.model.state_dict())
    another = dataclasses.replace(own_base, digest="another-digest")
    with pytest.raises(ModelError, match="was trained in another base"):
        merge_adapter(another, tmp_path / "adapter")
    after = own_base.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    own_base.model.set_submodule("model.layers.1.self_attn.q_proj", Opaque())
    with pytest.raises(ModelError, match=r"merged is not possible: .*q_proj is of type Opaque"):
        merge_adapter(own_base, tmp_path / "adapter")
