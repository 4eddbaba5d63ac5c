"""Writes a trained adapter as a folder in PEFT's standard format."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from peft import LoraConfig, TaskType
from safetensors.torch import save_file

from objectives.bank.bank import Bank
from objectives.bank.loading import WEIGHTS_FILE


def export_adapter(bank: Bank, slot: int, folder: Path) -> None:
    """Write a trial's adapter, cut to its true rank, for PEFT and all that read its format.

    The folder appears complete or not at all; one that is already there is replaced.

    Raises:
        ValueError: If no trial was admitted to the slot.
    """
    recipe = bank.recipe(slot)
    matrices = bank.matrices(slot)
    tensors = {
        f"base_model.model.{name}.lora_{side}.weight": matrix.contiguous().cpu()
        for name, pair in matrices.items()
        for side, matrix in zip("AB", pair, strict=True)
    }
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=bank.base.source,
        inference_mode=True,
        r=recipe.rank,
        # A whole number where it can be one: other readers of the format expect that.
        lora_alpha=int(recipe.alpha) if recipe.alpha == int(recipe.alpha) else recipe.alpha,
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
    )
    # Set afterwards, because the constructor makes a set of it, whose order differs between runs.
    config.target_modules = sorted({name.rpartition(".")[2] for name in matrices})
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    unfinished.mkdir()
    try:
        save_file(tensors, unfinished / WEIGHTS_FILE, metadata={"format": "pt"})
        config.save_pretrained(str(unfinished))
        if folder.exists():
            replaced = unfinished.with_name(f"{unfinished.name}.replaced")
            folder.rename(replaced)
            unfinished.rename(folder)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
