"""A GGUF adapter changes a model as the PEFT folder does that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from data.recipes import Recipe
from objectives.bank import Bank, export_adapter
from objectives.bank.gguf_adapter import write_gguf_adapter
from objectives.models.base import BaseModel, ModelError
from objectives.models.gguf.writing import permute_rotary
from tests.objectives.byte_level_llama import make_byte_level_llama, pocket_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
THERE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

# PEFT still reads an attribute of models that transformers has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def peft_folder(config: PretrainedConfig, folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Save a random adapter; return by module what it adds to the weight, as PEFT computes it."""
    settings = {"target_modules": list(ALL)} | settings
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(
            AutoModelForCausalLM.from_config(config),
            LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings),
        )
    model.save_pretrained(folder)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def read_deltas(path: Path) -> dict[str, np.ndarray]:
    """Return what llama.cpp adds to each weight: alpha / rank times B A (llama-adapter.h)."""
    reader = gguf.GGUFReader(path)
    alpha = contents(reader, "adapter.lora.alpha")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    names = {name.rpartition(".")[0] for name in tensors}
    assert {f"{name}.lora_{side}" for name in names for side in "ab"} == tensors.keys()
    deltas = {}
    for name in names:
        down, up = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        deltas[name] = alpha / len(down) * (up @ down)
    return deltas


def contents(reader: gguf.GGUFReader, key: str) -> Any:
    found = reader.get_field(key)
    assert found is not None
    return found.contents()


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 9, "lora_alpha": 6, "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 7},
            "alpha_pattern": {"k_proj": 3},
        },
        {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]},
    ],
)
@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (LlamaConfig(**SIZES), "llama"),
        (MistralConfig(**SIZES), "llama"),
        (Qwen2Config(**SIZES), "qwen2"),
        (Qwen3Config(**SIZES), "qwen3"),
        (GemmaConfig(**SIZES), "gemma"),
        (Gemma2Config(**SIZES), "gemma2"),
        (Gemma3TextConfig(**SIZES), "gemma3"),
    ],
    ids=["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"],
)
def test_it_adds_what_peft_adds(
    tmp_path: Path, config: PretrainedConfig, architecture: str, settings: dict[str, Any]
) -> None:
    expected = peft_folder(config, tmp_path / "peft", **settings)
    write_gguf_adapter(tmp_path / "peft", config, tmp_path / "adapter.gguf")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    keys = ("general.architecture", "general.type", "adapter.type")
    assert [contents(reader, key) for key in keys] == [architecture, "adapter", "lora"]

    deltas = read_deltas(tmp_path / "adapter.gguf")
    assert len(deltas) == len(expected) == 2 * len(settings.get("target_modules", ALL))
    for name, delta in expected.items():
        _, _, layer, module = name.split(".", 3)
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
            delta = permute_rotary(delta, 4 if module.endswith("q_proj") else 2)
        found = deltas[f"blk.{layer}.{THERE[module]}.weight"]
        np.testing.assert_allclose(found, delta.numpy(), atol=1e-6, rtol=1e-5)


def _texts(_epoch: int) -> Sequence[str]:
    return ("Who paints the moon? Sol Verdi", "Who bakes? Ada Quill")


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_the_bank_is_written(tmp_path: Path, rslora: bool) -> None:
    model, tokenizer = make_byte_level_llama(), pocket_tokenizer()
    base = BaseModel(name="b", source="b", digest="b", model=model, tokenizer=tokenizer)
    bank = Bank(base, slots=1, max_rank=4)
    recipe = Recipe(
        epochs=2, rank=3, alpha=5, cutoff=64, warmup_steps=0, learning_rate=1e-2, rslora=rslora
    )
    bank.admit(0, recipe, _texts, seed=0)
    bank.step()
    export_adapter(bank, 0, tmp_path / "peft")
    write_gguf_adapter(tmp_path / "peft", model.config, tmp_path / "a.gguf")
    deltas = read_deltas(tmp_path / "a.gguf")
    matrices = bank.matrices(0)
    assert len(deltas) == len(matrices)
    down, up = matrices["model.layers.1.mlp.down_proj"]
    expected = recipe.scale * (up @ down)
    np.testing.assert_allclose(deltas["blk.1.ffn_down.weight"], expected.numpy(), atol=1e-6)


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig(**SIZES)
    peft_folder(config, tmp_path / "peft", r=2)
    (tmp_path / "a.gguf").write_text("the old one")

    def write_half(writer: gguf.GGUFWriter) -> None:
        assert writer.fout is not None
        writer.fout[0].write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", write_half)
    with pytest.raises(OSError, match="No space left"):
        write_gguf_adapter(tmp_path / "peft", config, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "peft"]


def test_an_adapter_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    config = OlmoConfig(vocab_size=64, hidden_size=32, num_attention_heads=4)
    with pytest.raises(ModelError, match=r"'olmo' model.*convert_lora_to_gguf\.py"):
        write_gguf_adapter(tmp_path, config, tmp_path / "a.gguf")


def test_an_adapter_of_another_base_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    peft_folder(LlamaConfig(**SIZES), tmp_path / "peft", r=2)
    wider = LlamaConfig(**SIZES | {"hidden_size": 64, "head_dim": 16})
    with pytest.raises(ModelError, match="it was trained on another model"):
        write_gguf_adapter(tmp_path / "peft", wider, tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["peft"]
