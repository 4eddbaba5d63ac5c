"""Writes a trained adapter as a folder in PEFT's standard format."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, TaskType

from objectives.bank.bank import Bank
from objectives.bank.loading import BASE_DIGEST, WEIGHTS_FILE
from objectives.durable_files import MayReplace, filled_folder, save_tensors
from objectives.models.linear_modules import name_targets


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
        revision=bank.base.revision,
        inference_mode=True,
        r=recipe.rank,
        # A whole number where it can be one: other readers of the format expect that.
        lora_alpha=int(recipe.alpha) if recipe.alpha == int(recipe.alpha) else recipe.alpha,
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        fan_in_fan_out=any(
            module.is_transposed for module in bank.layout.modules if module.name in matrices
        ),
    )
    # Set afterwards, because the constructor makes a set of it, whose order differs between runs.
    config.target_modules = name_targets(bank.base.model, matrices)
    with filled_folder(folder, may_replace=may_replace) as unfinished:
        metadata = {"format": "pt", BASE_DIGEST: bank.base.digest}
        save_tensors(tensors, unfinished / WEIGHTS_FILE, metadata=metadata)
        config.save_pretrained(str(unfinished))
