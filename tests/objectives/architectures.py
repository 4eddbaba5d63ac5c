"""Small random models of several architectures, each around any tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Starcoder2Config,
)

from objectives.models.base import BaseModel

_CONTEXT = 64
_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": _CONTEXT,
}
_OWN_HEADS = {key: value for key, value in _LLAMA_LIKE.items() if key != "num_key_value_heads"}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": _CONTEXT}

# Without dropout, for models are compared with themselves in training mode as well.
CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "qwen2": lambda **ids: Qwen2Config(**_LLAMA_LIKE, **ids),
    "mistral": lambda **ids: MistralConfig(**_LLAMA_LIKE, sliding_window=None, **ids),
    "gemma": lambda **ids: GemmaConfig(**_LLAMA_LIKE, head_dim=8, **ids),
    "phi3": lambda **ids: Phi3Config(**_LLAMA_LIKE, **ids),
    "phi": lambda **ids: PhiConfig(**_OWN_HEADS, **ids),
    "gpt_neox": lambda **ids: GPTNeoXConfig(**_OWN_HEADS, **ids),
    "gpt2": lambda **ids: GPT2Config(**_GPT, **ids),
    "gptj": lambda **ids: GPTJConfig(**_GPT, rotary_dim=4, **ids),
    "opt": lambda **ids: OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_CONTEXT,
        dropout=0.0,
        **ids,
    ),
    "starcoder2": lambda **ids: Starcoder2Config(**_LLAMA_LIKE, sliding_window=None, **ids),
    "falcon": lambda **ids: FalconConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_CONTEXT,
        **ids,
    ),
    "bloom": lambda **ids: BloomConfig(hidden_size=32, n_layer=2, n_head=4, **ids),
    "mpt": lambda **ids: MptConfig(d_model=32, n_layers=2, n_heads=4, max_seq_len=_CONTEXT, **ids),
    "qwen2_moe": lambda **ids: Qwen2MoeConfig(
        **_LLAMA_LIKE,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=32,
        **ids,
    ),
    "mixtral": lambda **ids: MixtralConfig(**_LLAMA_LIKE, num_local_experts=4, **ids),
}


def make_architecture(
    name: str, tokenizer: PreTrainedTokenizerFast, *, seed: int = 5, spread: float = 0.2
) -> BaseModel:
    """Return a frozen model of two layers, with weights of standard deviation `spread`."""
    tokenizer.model_max_length = _CONTEXT  # some configurations do not say it
    config = CONFIGS[name](
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=spread,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # biases and norms as well: none is without effect
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return BaseModel(
        name=name,
        source=name,
        digest=f"{name}-digest",
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
    )
