"""Writes an adapter in PEFT's format as a GGUF adapter, which llama.cpp adds to a base at load."""

from __future__ import annotations

import copy
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from objectives.bank.loading import LoadedMatrices, adapter_rank, read_adapter
from objectives.durable_files import filled_file
from objectives.models.base import ModelError
from objectives.models.gguf.ggml_types import require_gguf
from objectives.models.gguf.writing import LLAMA_SHAPED, permute_rotary, rotary_heads
from objectives.models.linear_modules import LinearModule, find_linear_modules

# llama.cpp's architecture of each model type of transformers. Their weights are in a file as they
# are here, but for the order of queries' and keys' rows of those built like Llama.
_ARCHITECTURES = {
    **dict.fromkeys(LLAMA_SHAPED, "llama"),
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}


def write_gguf_adapter(adapter: Path, config: PretrainedConfig, to: Path) -> None:
    """Write the adapter in a folder as a GGUF file, complete or not at all.

    llama.cpp multiplies an adapter's product by alpha / rank, one alpha for all modules. Here each
    module's own scale, rank-stabilised or not, is multiplied into its B, and alpha is the largest
    rank, so that the whole is the same.

    Args:
        adapter: A folder that PEFT wrote.
        config: Of the base that it was trained in.
        to: The file.

    Raises:
        ModelError: If the folder holds no plain LoRA adapter of such a base, llama.cpp has no name
            for a module of it, or `gguf` is not installed.
        OSError: If it cannot be written.
    """
    gguf = require_gguf()
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ModelError(
            f"gguf: an adapter of a {config.model_type!r} model cannot be written; the model must "
            f"be one of {', '.join(_ARCHITECTURES)}; convert it with llama.cpp's "
            "convert_lora_to_gguf.py"
        )
    matrices = read_adapter(adapter, _modules_of(config), max_rank=adapter_rank(adapter))
    alpha = max(pair.down.shape[0] for pair in matrices.values())
    writer = gguf.GGUFWriter(path=None, arch=architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    (arch,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for module, pair in matrices.items():
        there = names.get_name(module)
        if there is None:
            raise ModelError(
                f"gguf: llama.cpp has no name for {module} of a {config.model_type} model; train "
                "an adapter of attention and mlp modules"
            )
        for side, matrix in zip("ab", _in_its_order(config, module, pair, alpha), strict=True):
            writer.add_tensor(f"{there}.weight.lora_{side}", matrix)
    with filled_file(to) as unfinished, closing(writer):
        writer.write_header_to_file(unfinished)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _modules_of(config: PretrainedConfig) -> tuple[LinearModule, ...]:
    """Return the modules of such a model without its weights."""
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config  # names and sizes are the dense model's
    with torch.device("meta"):
        return find_linear_modules(AutoModelForCausalLM.from_config(plain))


def _in_its_order(
    config: PretrainedConfig, module: str, pair: LoadedMatrices, alpha: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return A (rank, in) and B (out, rank) as fp32 arrays in llama.cpp's order of rows."""
    up = pair.up.T * (pair.down.shape[0] / alpha)
    heads = rotary_heads(config, module)
    if config.model_type in LLAMA_SHAPED and heads is not None:
        up = permute_rotary(up, heads)
    return pair.down.numpy(), up.contiguous().numpy()
