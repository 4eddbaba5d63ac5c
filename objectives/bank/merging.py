"""Folds an adapter into the weights of its base, and writes the whole model for transformers."""

from __future__ import annotations

from pathlib import Path
from stat import S_IMODE

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from objectives.bank.loading import LoadedMatrices, adapter_rank, read_adapter
from objectives.models.base import BaseModel, ModelError
from objectives.models.gptq.four_bit import FourBitLinear
from objectives.models.linear_modules import find_linear_modules

# Files of this size are easy to move, and no more than one is in memory twice.
_LARGEST_SHARD = "5GB"


def merge_adapter(base: BaseModel, adapter: Path) -> bool:
    """Add an adapter to its base's weights for good; return whether the base was quantised.

    Sums are computed in fp32 and rounded once, to the model's type. 4-bit modules become dense,
    one after the other, also those that the adapter leaves as they are: a sum has no 4-bit codes.
    They become halves where the model computes in fp32, for which their scales have no digits.

    Args:
        base: Is changed, and is of no use for anything else afterwards.
        adapter: A folder in PEFT's format.

    Raises:
        ModelError: If the adapter does not fit the base, or a module's weights cannot be changed.
    """
    modules = find_linear_modules(base.model)
    for module in modules:
        if not isinstance(module.module, nn.Linear | Conv1D | FourBitLinear):
            raise ModelError(
                f"format: merged is not possible: {module.name} is of type "
                f"{type(module.module).__name__}, whose weights this program cannot write; export "
                "the adapter alone (peft), or name a base that is not quantised"
            )
    matrices = read_adapter(
        adapter, modules, max_rank=adapter_rank(adapter), base_digest=base.digest
    )
    four_bit = [
        name for name, module in base.model.named_modules() if isinstance(module, FourBitLinear)
    ]
    if four_bit and base.model.dtype == torch.float32:
        base.model.half()
    for name in dict.fromkeys((*four_bit, *matrices)):
        _merge_module(base, name, matrices.get(name))
    return bool(four_bit)


def save_merged(base: BaseModel, folder: Path) -> None:
    """Write a merged model with its tokenizer and settings into an empty folder.

    Raises:
        ModelError: If transformers cannot write the model.
        OSError: If the disk is full or cannot be written.
    """
    try:
        base.model.save_pretrained(folder, max_shard_size=_LARGEST_SHARD)
        base.tokenizer.save_pretrained(folder)
        # The library makes them for their owner alone, and others may have to serve the model.
        ordinary = (folder / "config.json").stat().st_mode
        for weights in folder.glob("*.safetensors"):
            weights.chmod(S_IMODE(ordinary))
    except SafetensorError as error:
        raise OSError(f"{folder} cannot be written: {error}") from error
    except ValueError as error:
        raise ModelError(f"format: merged is not possible: {error}") from error


@torch.no_grad()
def _merge_module(base: BaseModel, name: str, loaded: LoadedMatrices | None) -> None:
    module = base.model.get_submodule(name)
    if isinstance(module, FourBitLinear):
        weight = module.dequantise(torch.float32).T
    else:
        assert isinstance(module.weight, Tensor)
        weight = module.weight.float()
    if loaded is not None:
        # A Conv1D keeps its weights (in, out), the others (out, in).
        is_transposed = isinstance(module, Conv1D)
        change = loaded.down.T @ loaded.up if is_transposed else loaded.up.T @ loaded.down
        weight = weight + change.to(weight.device)
    weight = weight.to(base.model.dtype).contiguous()
    if not isinstance(module, FourBitLinear):
        module.weight.copy_(weight)
        return
    has_bias = module.bias is not None
    dense = nn.Linear(module.in_features, module.out_features, bias=has_bias, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        dense.bias = nn.Parameter(module.bias.to(base.model.dtype), requires_grad=False)
    base.model.set_submodule(name, dense)
