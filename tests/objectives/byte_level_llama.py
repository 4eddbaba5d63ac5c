"""Small random models with the pocket model's byte-level tokenizer, as `.gguf` files hold them."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def pocket_tokenizer() -> PreTrainedTokenizerFast:
    with as_file(files("data") / "pocket") as folder:
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
            folder, padding_side="left"
        )
    return tokenizer


def make_byte_level_llama(**changes: Any) -> LlamaForCausalLM:
    """Return a Llama of two layers that shares keys and values among heads; biases are not zero.

    `changes` are fields of its configuration.
    """
    sizes = {
        "vocab_size": 1536,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = LlamaConfig(**sizes | changes)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand_like(parameter) + ("norm" in name))
    return model


def random_ids(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(3, 1536, (rows, tokens), generator=torch.Generator().manual_seed(5))
