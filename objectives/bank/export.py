"""Writes a trained adapter as a folder in PEFT's standard format."""

from __future__ import annotations

import shutil
from pathlib import Path

from peft import LoraConfig, TaskType

from objectives.bank.bank import Bank
from objectives.bank.durable_files import (
    MayReplace,
    put_folder_in_place,
    save_tensors,
    sync,
    unfinished_name,
)
from objectives.bank.loading import WEIGHTS_FILE


def export_adapter(
    bank: Bank, slot: int, folder: Path, *, may_replace: MayReplace | None = None
) -> None:
    """Write a trial's adapter, cut to its true rank, for PEFT and all that read its format.

    The folder appears complete or not at all; one that is already there is replaced as a whole, or
    stays as it was where an error is raised.

    Args:
        bank: Where the adapter is.
        slot: Its slot.
        folder: What to write.
        may_replace: Held while the new folder takes its place, as in `save_checkpoint`.

    Raises:
        OSError: If the disk is full or cannot be written.
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
    unfinished = unfinished_name(folder)
    unfinished.mkdir()
    try:
        save_tensors(tensors, unfinished / WEIGHTS_FILE, metadata={"format": "pt"})
        config.save_pretrained(str(unfinished))
        for path in (*unfinished.iterdir(), unfinished):
            sync(path)
        put_folder_in_place(unfinished, folder, may_replace=may_replace)
    finally:
        # By now it is the folder that was replaced, if there was one.
        shutil.rmtree(unfinished, ignore_errors=True)
