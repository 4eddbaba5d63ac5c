"""Reads a LoRA adapter in PEFT's format from a folder, whoever trained it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from objectives.bank.modules import LinearModule
from objectives.models.base import ModelError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_WEIGHT_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedMatrices:
    """One module's adapter: `down` (rank, in) and `up` (rank, out), which includes the scale."""

    down: Tensor
    up: Tensor


def read_adapter(
    folder: Path, modules: tuple[LinearModule, ...], *, max_rank: int
) -> dict[str, LoadedMatrices]:
    """Return the matrices of every module that the adapter in `folder` changes, by module name.

    Raises:
        ModelError: If files are missing or are not a plain LoRA adapter, if the adapter changes
            anything but `modules`, or if shapes or ranks do not fit.
    """
    config = _read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"adapter: {folder / WEIGHTS_FILE} cannot be read: {error}") from error
    module_of = {module.name: module for module in modules}
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _WEIGHT_KEY.fullmatch(key)
        if match is None or match["module"] not in module_of:
            raise ModelError(
                f"adapter: {folder} changes {key!r}, which this program cannot apply; it must be "
                "a plain LoRA adapter of this model's attention and mlp modules"
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise ModelError(f"adapter: {folder / WEIGHTS_FILE} holds no adapter weights")
    return {
        name: _check_matrices(folder, config, module_of[name], pair, max_rank)
        for name, pair in sides.items()
    }


def adapter_rank(folder: Path) -> int:
    """Return the largest rank of the adapter in `folder`: what a bank needs to load it.

    Raises:
        ModelError: If the folder holds no LoRA adapter.
    """
    config = _read_config(folder)
    return int(max((config.r, *config.rank_pattern.values())))


def _read_config(folder: Path) -> LoraConfig:
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"adapter: {folder} has no {CONFIG_FILE}; name a folder that PEFT wrote")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"adapter: {folder / CONFIG_FILE} cannot be read: {error}") from error
    if not isinstance(config, LoraConfig):
        raise ModelError(f"adapter: {folder} is of type {config.peft_type}; it must be LORA")
    return config


def _check_matrices(
    folder: Path,
    config: LoraConfig,
    module: LinearModule,
    pair: dict[str, Tensor],
    max_rank: int,
) -> LoadedMatrices:
    if set(pair) != {"A", "B"}:
        raise ModelError(f"adapter: {folder} has only one of lora_A and lora_B of {module.name}")
    down, up = pair["A"].float(), pair["B"].float()
    rank = down.shape[0]
    if rank > max_rank:
        raise ModelError(
            f"adapter: {folder} has rank {rank} at {module.name}; at most {max_rank} fits; make "
            "the bank with a larger max_rank"
        )
    expected = (rank, module.in_features), (module.out_features, rank)
    if (tuple(down.shape), tuple(up.shape)) != expected:
        raise ModelError(
            f"adapter: {folder} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} at "
            f"{module.name}; this model needs {expected[0]} and {expected[1]}; it was trained on "
            "another model"
        )
    pattern = get_pattern_key(config.alpha_pattern.keys(), module.name)
    alpha = config.alpha_pattern.get(pattern, config.lora_alpha)
    scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    return LoadedMatrices(down=down, up=up.T * scale)
