"""Rows of one forward pass use their own slots' adapters; adapters from disk answer too."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from data.recipes import Recipe
from objectives.bank import Bank, export_adapter
from objectives.models.base import BaseModel, ModelError, cache_argument

EpochTexts = Callable[[int], Sequence[str]]

RECIPE = Recipe(epochs=9, rank=4, alpha=8, cutoff=64, warmup_steps=0, learning_rate=1e-2)

# PEFT still reads an attribute of models that transformers has renamed.
quiet_peft = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture
def bank(base: BaseModel, texts: Callable[[int], EpochTexts]) -> Bank:
    """Return a bank with three trained slots of different recipes and an empty fourth."""
    bank = Bank(base, slots=4, max_rank=8)
    bank.admit(0, RECIPE, texts(0), seed=0)
    bank.admit(1, dataclasses.replace(RECIPE, rank=8, rslora=True), texts(1), seed=1)
    bank.admit(
        2, dataclasses.replace(RECIPE, rank=1, alpha=2.5, target_modules="mlp"), texts(2), seed=2
    )
    for _ in range(6):
        bank.step()
    return bank


def answer(bank: Bank, token_ids: Tensor, row_slots: Sequence[int]) -> Tensor:
    per_token = [slot for slot in row_slots for _ in range(token_ids.shape[1])]
    with torch.no_grad(), bank.answering(per_token):
        logits: Tensor = bank.base.model(token_ids).logits
    return logits


@pytest.mark.parametrize(
    "row_slots",
    [
        (0, 0, 1, 1, 2, 2),
        (2, 0, 1, 2, 1, 0),
        (1, 1, 0, 1, 1, 1),
        (-1, 2, -1, 0, 0, -1),
        (2, 2, 2, 2, 2, 2),
        (0, -1, -1, -1, -1, 2),
    ],
)
def test_each_row_gets_what_its_slot_alone_answers(
    bank: Bank, token_ids: Tensor, row_slots: tuple[int, ...]
) -> None:
    mixed = answer(bank, token_ids, row_slots)
    untouched = answer(bank, token_ids, [-1] * 6)
    for row, slot in enumerate(row_slots):
        alone = answer(bank, token_ids, [slot] * 6)[row]
        torch.testing.assert_close(mixed[row], alone, atol=1e-5, rtol=0)
        assert (slot == -1) == torch.equal(mixed[row], untouched[row])


def test_rows_without_an_adapter_are_the_bare_base_bit_for_bit(
    bank: Bank, token_ids: Tensor
) -> None:
    with torch.no_grad():
        bare = bank.base.model(token_ids).logits
    assert torch.equal(answer(bank, token_ids, [-1] * 6), bare)
    assert torch.equal(answer(bank, token_ids, [1, -1, 0, -1, 2, -1])[1::2], bare[1::2])


def test_a_key_value_cache_gives_the_same_answers(bank: Bank, token_ids: Tensor) -> None:
    row_slots = [2, -1, 0, 1, 0, 0]
    whole = answer(bank, token_ids, row_slots)
    with torch.no_grad(), bank.answering([slot for slot in row_slots for _ in range(5)]):
        read, name = DynamicCache(), cache_argument(bank.base.model)
        start = bank.base.model(token_ids[:, :5], use_cache=True, **{name: read})
    with torch.no_grad(), bank.answering(row_slots):
        rest = [
            bank.base.model(
                token_ids[:, position : position + 1],
                use_cache=True,
                **{name: read},
            ).logits
            for position in range(5, 9)
        ]
    torch.testing.assert_close(torch.cat([start.logits, *rest], dim=1), whole, atol=1e-5, rtol=0)


def test_rows_can_be_dropped_between_passes(bank: Bank, token_ids: Tensor) -> None:
    whole = answer(bank, token_ids, [0, 0, 1, 1, 2, 2])
    fewer = answer(bank, token_ids[[1, 2, 5]], [0, 1, 2])
    torch.testing.assert_close(fewer, whole[[1, 2, 5]], atol=1e-5, rtol=0)


def test_an_empty_slot_cannot_answer(bank: Bank) -> None:
    for slot in (3, 4, -2):
        with pytest.raises(ValueError, match=f"slot: {slot} is empty"):
            bank.answering([0, slot])


def test_a_pass_with_other_tokens_than_announced_fails_and_leaves_no_hooks(
    bank: Bank, token_ids: Tensor
) -> None:
    with (
        pytest.raises(ValueError, match="rows: the pass has 54 entries; it must have 2"),
        bank.answering([0, 1]),
    ):
        bank.base.model(token_ids)
    assert all(not module._forward_hooks for module in bank.base.model.modules())


@quiet_peft
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_an_exported_adapter_answers_the_same_in_peft(
    bank: Bank, token_ids: Tensor, tmp_path: Path, slot: int
) -> None:
    folder = tmp_path / "runs" / "adapter"
    export_adapter(bank, slot, folder)
    model = PeftModel.from_pretrained(copy.deepcopy(bank.base.model), str(folder))
    with torch.no_grad():
        logits = model(token_ids).logits
    expected = answer(bank, token_ids, [slot] * 6)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(logits, answer(bank, token_ids, [-1] * 6), atol=1e-2)


@quiet_peft
def test_on_a_half_precision_base_adapters_stay_fp32_and_answer_as_in_peft(
    base: BaseModel, texts: Callable[[int], EpochTexts], token_ids: Tensor, tmp_path: Path
) -> None:
    half = dataclasses.replace(base, model=copy.deepcopy(base.model).bfloat16())
    bank = Bank(half, slots=1, max_rank=4)
    bank.admit(0, RECIPE, texts(0), seed=0)
    for _ in range(6):
        bank.step()
    assert all(a.dtype == b.dtype == torch.float32 for a, b in bank.matrices(0).values())
    export_adapter(bank, 0, tmp_path / "adapter")
    logits = answer(bank, token_ids, [0] * 6)
    model = PeftModel.from_pretrained(copy.deepcopy(half.model), str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = model(token_ids).logits
    assert logits.dtype == expected.dtype == torch.bfloat16
    # bfloat16 has 8 bits: roundings may fall differently by a step or two of logits up to 4.
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0.02)


def test_an_export_is_the_standard_folder_at_its_true_rank(bank: Bank, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    export_adapter(bank, 0, folder)
    export_adapter(bank, 2, folder)  # replaces the first
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 1,
        "lora_alpha": 2.5,
        "use_rslora": False,
        "target_modules": ["down_proj", "gate_proj", "up_proj"],
        "base_model_name_or_path": "tiny",
        "bias": "none",
    }
    assert {key: config[key] for key in expected} == expected
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{prefix}.lora_A.weight"].shape == (1, 48)
    assert tensors[f"{prefix}.lora_B.weight"].shape == (32, 1)
    assert len(tensors) == 2 * 2 * 3  # two layers, A and B, three modules


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_loaded_adapter_answers_as_when_it_was_trained(
    bank: Bank, token_ids: Tensor, tmp_path: Path, slot: int
) -> None:
    export_adapter(bank, slot, tmp_path / "adapter")
    bank.load(3, tmp_path / "adapter")
    torch.testing.assert_close(
        answer(bank, token_ids, [3, 3, 3, slot, 3, 3]),
        answer(bank, token_ids, [slot] * 6),
        atol=1e-5,
        rtol=0,
    )
    before = bank.progress(3)
    bank.step()
    assert bank.progress(3) == before, "a loaded adapter does not train"


@quiet_peft
def test_an_adapter_with_its_own_rank_and_alpha_per_module_answers_as_in_peft(
    bank: Bank, token_ids: Tensor, tmp_path: Path
) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"q_proj": 2},
        alpha_pattern={"down_proj": 20},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(copy.deepcopy(bank.base.model), config)
    model.peft_config["default"].base_model_name_or_path = None  # or PEFT asks the network for it
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    bank.load(3, tmp_path)
    with torch.no_grad():
        expected = model.eval()(token_ids).logits
    torch.testing.assert_close(answer(bank, token_ids, [3] * 6), expected, atol=1e-5, rtol=1e-5)


def rename_a_key(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    key = next(iter(tensors))
    tensors["base_model.model.lm_head.lora_A.weight"] = tensors.pop(key)


def drop_b(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    del tensors[next(key for key in tensors if "lora_B" in key)]


def widen(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = torch.zeros(4, 33)


def raise_rank(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = torch.zeros(9, 32)


def change_type(_: dict[str, Tensor], config: dict[str, Any]) -> None:
    config.clear()
    config.update(peft_type="IA3", task_type="CAUSAL_LM")


def remove_all(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rename_a_key, "lm_head.* which this program cannot apply"),
        (drop_b, "only one of lora_A and lora_B"),
        (widen, "trained on another model"),
        (raise_rank, "rank 9 .* at most 8 fits"),
        (change_type, "it must be LORA"),
        (remove_all, "holds no adapter weights"),
    ],
)
def test_an_adapter_that_cannot_be_applied_is_refused(
    bank: Bank,
    tmp_path: Path,
    spoil: Callable[[dict[str, Tensor], dict[str, Any]], None],
    message: str,
) -> None:
    folder = tmp_path / "adapter"
    export_adapter(bank, 0, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    spoil(tensors, config)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        bank.load(3, folder)
    export_adapter(bank, 0, folder)
    bank.load(3, folder)  # the slot is still empty


def test_a_folder_without_an_adapter_is_refused(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no adapter_config"):
        bank.load(3, tmp_path)
    export_adapter(bank, 0, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text("not tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        bank.load(3, tmp_path / "adapter")


def test_only_a_trained_slot_can_be_exported(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trial was admitted to 3"):
        export_adapter(bank, 3, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []
