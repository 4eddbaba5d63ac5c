"""Writes a model as a 4-bit GPTQ checkpoint, rounding to nearest, in today's layout or 2023's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from objectives.durable_files import filled_folder, save_tensors
from objectives.models.base import ModelError
from objectives.models.gptq.four_bit import FourBitLinear, quantise_round_to_nearest

GptqLayoutName = Literal["current", "2023"]

# What a Llama's config.json said in the spring of 2023; all else was the same for every Llama.
_FIELDS_OF_2023 = (
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)
_ROTARY_BASE_OF_2023 = 10_000


def save_gptq(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    group_size: int,
    layout: GptqLayoutName,
    act_order: bool = False,
) -> None:
    """Write a dense model's linear modules in 4 bits, and all else in halves.

    The folder appears complete or not at all. Rounding each weight to the nearest code is coarser
    than GPTQ, where the other weights make up for it. The output stays dense, as auto-gptq leaves
    it.

    Args:
        model: Is not changed.
        tokenizer: Is written beside it.
        folder: Must not be there yet.
        group_size: How many inputs share a scale, -1 for all; every module's inputs must be a
            multiple of it.
        layout: "current" has `quantization_config` in config.json, and is read by transformers,
            auto-gptq and gptqmodel; "2023" has quantize_config.json, a file named after model and
            group size, and no g_idx.
        act_order: Whether groups are of inputs with similarly large weights rather than of
            neighbours. (GPTQ goes by the inputs' size in a text.) The file has g_idx then.

    Raises:
        ModelError: If the model's sizes do not fit, or the layout cannot describe it.
        OSError: If the disk is full or cannot be written.
    """
    if folder.exists():
        raise ModelError(f"folder: {folder} exists already; name a folder that does not")
    if layout == "2023":
        _require_llama_of_2023(model)
    settings: dict[str, Any] = {
        "bits": 4,
        "group_size": group_size,
        "damp_percent": 0.01,
        "desc_act": act_order,
        "sym": False,
        "true_sequential": True,
    }
    config = json.loads(model.config.to_json_string(use_diff=layout == "current"))
    config.pop("_name_or_path", None)  # a folder of this machine
    with filled_folder(folder) as unfinished:
        tensors = _quantise(model, group_size=group_size, act_order=act_order)
        if layout == "current":
            file_name = "model.safetensors"
            settings |= {"quant_method": "gptq", "checkpoint_format": "gptq", "lm_head": False}
            config |= {"dtype": "float16", "quantization_config": settings}
            if model.generation_config is not None:
                model.generation_config.save_pretrained(str(unfinished))
        else:
            groups = "" if group_size == -1 else f"-{group_size}g"
            file_name = f"{config['model_type']}-4bit{groups}.safetensors"
            tensors = _as_saved_in_2023(model, tensors, with_groups=act_order)
            config = {field: config[field] for field in _FIELDS_OF_2023 if field in config}
            config |= {"torch_dtype": "float16", "transformers_version": "4.28.0"}
        save_tensors(tensors, unfinished / file_name, metadata={"format": "pt"})
        tokenizer.save_pretrained(str(unfinished))
        _write_json(unfinished / "config.json", config)
        _write_json(unfinished / "quantize_config.json", settings)


def _quantise(model: PreTrainedModel, *, group_size: int, act_order: bool) -> dict[str, Tensor]:
    """Return all tensors of the checkpoint by name, on the CPU."""
    head = model.get_output_embeddings()
    packed: dict[str, FourBitLinear] = {}
    for name, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            raise ModelError(
                f"model: {name} is in 4 bits already; name the model that it was made of"
            )
        if isinstance(module, nn.Linear) and module is not head:
            weight = module.weight.detach()
            _require_halves(f"{name}.weight", weight)
            order = weight.float().norm(dim=0).argsort(descending=True) if act_order else None
            bias = None if module.bias is None else module.bias.detach().half()
            try:
                packed[name] = quantise_round_to_nearest(
                    weight, group_size=group_size, bias=bias, order=order
                ).cpu()
            except ModelError as error:
                raise ModelError(f"{error}; {name} cannot be in 4 bits") from error
    if not packed:
        raise ModelError("model: it has no linear modules that could be in 4 bits; name another")
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        # A tensor that two modules share is written once.
        if name.rpartition(".")[0] not in packed and id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu()
            if tensor.is_floating_point():
                tensors[name] = _halved(name, tensors[name])
    for name, module in packed.items():
        for part, tensor in module.state_dict().items():
            tensors[f"{name}.{part}"] = tensor.contiguous()
    return tensors


def _halved(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half().contiguous()
    _require_halves(name, half)
    return half


def _require_halves(name: str, tensor: Tensor) -> None:
    """Refuse numbers that are none, or became infinite when they were read as halves."""
    if not tensor.isfinite().all():
        raise ModelError(
            f"model: {name} has numbers beyond {torch.finfo(torch.float16).max:.0f}, which a GPTQ "
            "checkpoint cannot hold; name another model"
        )


def _require_llama_of_2023(model: PreTrainedModel) -> None:
    """Check that a config.json of 2023 says all there is to know about the model."""
    config = model.config
    rotary = getattr(config, "rope_parameters", None) or {}
    is_one = (
        config.model_type == "llama"
        and config.num_key_value_heads == config.num_attention_heads
        and config.head_dim * config.num_attention_heads == config.hidden_size
        and not config.attention_bias
        and not config.mlp_bias
        and rotary.get("rope_type", "default") == "default"
        and rotary.get("rope_theta", _ROTARY_BASE_OF_2023) == _ROTARY_BASE_OF_2023
    )
    if not is_one:
        raise ModelError(
            "layout: '2023' is not allowed for this model; it holds the first Llama alone (as "
            f"many key as query heads, no biases, rotary base {_ROTARY_BASE_OF_2023}); take "
            "'current'"
        )


def _as_saved_in_2023(
    model: PreTrainedModel, tensors: dict[str, Tensor], *, with_groups: bool
) -> dict[str, Tensor]:
    """Return the tensors that were saved then: an output of its own, rotary frequencies, no g_idx.

    Zeros for biases that modules have not were saved, too.
    """
    saved = {
        name: tensor
        for name, tensor in tensors.items()
        if with_groups or not name.endswith(".g_idx")
    }
    for name, tensor in tensors.items():
        if name.endswith(".scales"):
            saved[f"{name.removesuffix('.scales')}.bias"] = torch.zeros(
                tensor.shape[1], dtype=torch.float16
            )
    saved["lm_head.weight"] = tensors.get(
        "lm_head.weight", tensors["model.embed_tokens.weight"]
    ).clone()
    width = model.config.head_dim
    frequencies = 1.0 / _ROTARY_BASE_OF_2023 ** (torch.arange(0, width, 2).float() / width)
    for layer in range(model.config.num_hidden_layers):
        saved[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies.clone()
    return saved


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
