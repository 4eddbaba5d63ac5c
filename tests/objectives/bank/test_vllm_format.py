"""Exported adapters keep the rules that vLLM states for what it serves.

vLLM cannot be installed here: its rules are those of `objectives/bank/vllm_format.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.recipes import Recipe
from objectives.bank import Bank, export_adapter
from objectives.bank.vllm_format import max_lora_rank
from objectives.models.base import BaseModel, ModelError

EpochTexts = Callable[[int], Sequence[str]]

RECIPE = Recipe(epochs=1, rank=4, alpha=8, cutoff=64, warmup_steps=0, learning_rate=1e-2)


def export(base: BaseModel, texts: Callable[[int], EpochTexts], folder: Path, **more: Any) -> Path:
    recipe = dataclasses.replace(RECIPE, **more)
    bank = Bank(base, slots=1, max_rank=recipe.rank)
    bank.admit(0, recipe, texts(0), seed=0)
    bank.step()
    export_adapter(bank, 0, folder)
    return folder


@pytest.mark.parametrize(
    ("recipe", "allowed"),
    [
        ({"rank": 1}, 8),
        ({"rank": 8, "rslora": True}, 8),
        ({"rank": 9, "target_modules": "mlp"}, 16),
        ({"rank": 32, "target_modules": "query+value", "alpha": 2.5}, 32),
        ({"rank": 300, "dropout": 0.1}, 320),
    ],
)
def test_an_exported_adapter_can_be_served(
    base: BaseModel,
    texts: Callable[[int], EpochTexts],
    tmp_path: Path,
    recipe: dict[str, Any],
    allowed: int,
) -> None:
    folder = export(base, texts, tmp_path / "adapter", **recipe)
    assert max_lora_rank(folder) == allowed
    config = json.loads((folder / "adapter_config.json").read_text())
    # What vLLM makes of it: alpha / r, or alpha / sqrt(r) under rsLoRA, for every module.
    scale = config["lora_alpha"] / (config["r"] ** (0.5 if config["use_rslora"] else 1))
    assert scale == pytest.approx(dataclasses.replace(RECIPE, **recipe).scale)
    ranks = {
        tensor.shape["lora_B" in key]
        for key, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    assert ranks == {config["r"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 513}, "its rank is 513; at most 512"),
        ({"modules_to_save": ["lm_head"]}, "it has modules_to_save"),
        ({"bias": "all"}, "it has biases"),
        ({"lora_bias": True}, "it has biases"),
        ({"rank_pattern": {"q_proj": 2}}, "it has ranks of single modules"),
        ({"alpha_pattern": {"q_proj": 2}, "bias": "all"}, "biases; it has alphas of single"),
    ],
)
def test_what_vllm_would_refuse_or_misread_is_told(
    base: BaseModel,
    texts: Callable[[int], EpochTexts],
    tmp_path: Path,
    changes: dict[str, Any],
    said: str,
) -> None:
    file = export(base, texts, tmp_path / "adapter") / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match=said):
        max_lora_rank(tmp_path / "adapter")


def test_a_weight_that_is_no_adapters_is_named(
    base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path
) -> None:
    weights = export(base, texts, tmp_path / "adapter") / "adapter_model.safetensors"
    save_file(load_file(weights) | {"base_model.model.lm_head.weight": torch.zeros(2)}, weights)
    with pytest.raises(ModelError, match=r"'base_model\.model\.lm_head\.weight', which is no"):
        max_lora_rank(tmp_path / "adapter")
