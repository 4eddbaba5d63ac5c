"""A random Llama of two layers around any tokenizer, small enough to be made for a test."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from objectives.models.base import BaseModel

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make_tiny_llama(
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    context: int,
    initializer_range: float,
) -> BaseModel:
    """Return a frozen model, to be shared and not changed; its weights follow from the seed."""
    config = LlamaConfig(
        **SIZES,
        vocab_size=len(tokenizer),
        max_position_embeddings=context,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=1,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=initializer_range,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return BaseModel(
        name=name,
        source=name,
        digest=f"{name}-digest",
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
    )
