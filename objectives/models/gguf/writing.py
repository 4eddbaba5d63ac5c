"""Writes a model built like Llama as llama.cpp's `.gguf` file, with its tokenizer.

Others are refused: llama.cpp's own converter knows some hundred architectures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from objectives.durable_files import filled_file
from objectives.models.base import ModelError
from objectives.models.gguf.ggml_types import (
    Bytes,
    GgmlType,
    bits_per_weight,
    quantise,
    require_gguf,
    type_of,
)
from objectives.models.gguf.ggml_weights import dense_shape, dense_weight, matrix_modules
from objectives.models.gguf.vocabulary import add_tokenizer

# Model types of transformers that llama.cpp computes as its architecture "llama".
LLAMA_SHAPED = ("llama", "mistral")

# Scalings of rotary frequencies that change nothing but the frequencies, once and for all.
_FIXED_ROPES = ("default", "linear", "llama3")

_OTHERWISE = "convert it with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileTensor:
    """A tensor of the file; `read` makes its values, in llama.cpp's order of rows."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def write_gguf_model(
    model: PreTrainedModel, tokenizer: Tokenizer, to: Path, *, ggml_type: GgmlType = "f16"
) -> None:
    """Write a model as a `.gguf` file: all matrices of one type, all else fp32.

    That is what `llama-quantize --pure` makes of them. The file appears complete or not at all.
    One tensor at a time is made dense, in fp32 and as bytes, so that a large model takes little
    memory besides its own.

    Args:
        model: Llama or Mistral; dense, or a GPTQ checkpoint, whose dequantised weights are
            written. Its context ends in the file where a sliding window would begin to slide.
        tokenizer: Byte-level BPE, or BPE of SentencePiece's pieces.
        to: The file.
        ggml_type: Of the matrices.

    Raises:
        ModelError: If the file cannot hold the model or its tokenizer.
        OSError: If it cannot be written.
    """
    gguf = require_gguf()
    config = model.config
    _require_llama(config)
    tensors = tuple(_tensors(model))
    writer = gguf.GGUFWriter(path=None, arch="llama")
    _add_shape(writer, config, to.stem)
    writer.add_file_type(gguf.LlamaFileType[_file_type(ggml_type)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, tokenizer, int(config.vocab_size))
    for tensor in tensors:
        own_type = _own_type(tensor, ggml_type)
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            np.dtype(np.float32),
            round(math.prod(tensor.shape) * bits_per_weight(own_type) / 8),
            raw_dtype=type_of(own_type),
        )
    with filled_file(to) as unfinished, closing(writer):
        writer.write_header_to_file(unfinished)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_pack(tensor, ggml_type))


def permute_rotary(rows: Tensor, heads: int) -> Tensor:
    """Return the rows of a query or key matrix, or its bias, in llama.cpp's order.

    transformers rotates a head's first half with its second, llama.cpp's architecture "llama"
    neighbours with each other.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def rotary_heads(config: PretrainedConfig, name: str) -> int | None:
    """Return how many heads a module of a Llama's queries or keys has; None for any other."""
    if name.endswith("q_proj"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if name.endswith("k_proj") else None


def _require_llama(config: PretrainedConfig) -> None:
    reasons = {
        f"model_type {config.model_type!r}": config.model_type not in LLAMA_SHAPED,
        f"hidden_act {config.hidden_act!r}": config.hidden_act not in ("silu", "swish"),
        f"rope_type {_rope_type(config)!r}": _rope_type(config) not in _FIXED_ROPES,
    }
    for what, is_other in reasons.items():
        if is_other:
            raise ModelError(
                f"gguf: a model with {what} cannot be written; it must be built like Llama "
                f"(model_type {' or '.join(LLAMA_SHAPED)}); {_OTHERWISE}"
            )


def _rope_type(config: PretrainedConfig) -> str:
    return str((config.rope_parameters or {}).get("rope_type", "default"))


def _context(config: PretrainedConfig) -> int:
    """Return the most tokens that such a file's model reads as this one does.

    llama.cpp's architecture "llama" has no sliding window, and up to the window none is needed.
    """
    tokens = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    return tokens if window is None else min(tokens, window)


def _add_shape(writer: Any, config: PretrainedConfig, name: str) -> None:
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    writer.add_name(name)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _file_type(ggml_type: GgmlType) -> str:
    if ggml_type == "f32":
        return "ALL_F32"
    # Of those with several mixtures the one that is nearest to a single type.
    small = "_S" if ggml_type in ("q3_k", "q4_k", "q5_k") else ""
    return f"MOSTLY_{ggml_type.upper()}{small}"


def _own_type(tensor: _FileTensor, ggml_type: GgmlType) -> GgmlType:
    return ggml_type if len(tensor.shape) > 1 else "f32"


def _pack(tensor: _FileTensor, ggml_type: GgmlType) -> Bytes:
    """Return the bytes of a tensor in the file; its values are gone by then."""
    values = tensor.read()
    rows = values if values.ndim > 1 else values[None]
    return quantise(rows, _own_type(tensor, ggml_type))


def _tensors(model: PreTrainedModel) -> Iterator[_FileTensor]:
    """Yield each tensor of the file, none of them dense yet."""
    gguf = require_gguf()
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    matrices = matrix_modules(model)
    output = model.get_output_embeddings()
    is_tied = output is not None and output.weight is model.get_input_embeddings().weight
    for name, module in model.named_modules():
        if module is output and is_tied:
            continue  # llama.cpp takes the embedding where there is none
        shapes = {field: own.shape for field, own in module.named_parameters(recurse=False)}
        if name in matrices:
            shapes["weight"] = dense_shape(module)
            if (bias := getattr(module, "bias", None)) is not None:
                shapes["bias"] = bias.shape
        for field, shape in shapes.items():
            there = names.get_name(f"{name}.{field}", try_suffixes=(".weight", ".bias"))
            if there is None:
                raise ModelError(f"gguf: {name}.{field} has no name in a .gguf file; {_OTHERWISE}")
            heads = rotary_heads(config, name)
            yield _FileTensor(
                name=there, shape=tuple(shape), read=partial(_read, module, field, heads)
            )
    factors = _frequency_factors(model)
    if not torch.allclose(factors, torch.ones_like(factors), rtol=1e-6):
        yield _FileTensor(
            name="rope_freqs.weight", shape=tuple(factors.shape), read=lambda: factors
        )


def _read(module: nn.Module, field: str, heads: int | None) -> Tensor:
    """Return a module's weight, dense, or its bias, in llama.cpp's order of rows."""
    values: Tensor = dense_weight(module) if field == "weight" else getattr(module, field)
    return values if heads is None else permute_rotary(values, heads)


def _frequency_factors(model: PreTrainedModel) -> Tensor:
    """Return what the rotary frequencies are divided by, (head size / 2): 1 if not scaled."""
    scaled: Tensor = model.base_model.rotary_emb.inv_freq.float().cpu()
    exponents = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    theta = float(model.config.rope_parameters["rope_theta"])
    return theta**-exponents / scaled
