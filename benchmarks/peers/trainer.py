"""Transformers' Trainer with PEFT: the usual way to train one adapter, in its fast settings."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments

from benchmarks.peers.peft_parts import lora_config, make_optimizer, pad_right
from data.recipes import Recipe
from objectives.bank.adam import MAX_GRADIENT_NORM
from objectives.bank.batches import Batch


def reload_model(source: str) -> Any:
    """Return the base model from disk, as a script does that knows of no other trial."""
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def train_with_trainer(
    source: str, recipe: Recipe, epochs: list[list[Batch]], *, pad_id: int
) -> tuple[Any, float]:
    """Load a model, train an adapter on it; return both and the mean loss of the last epoch.

    The batches of all epochs are one dataset, read in order, so that this trains on the same
    tokens in the same order as every other way.
    """
    adapted = get_peft_model(reload_model(source), lora_config(recipe))
    parameters = [each for each in adapted.parameters() if each.requires_grad]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=adapted,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=1,  # the dataset's items are batches
                num_train_epochs=1,
                train_sampling_strategy="sequential",
                max_grad_norm=MAX_GRADIENT_NORM,
                # Once an epoch: that is how it tells a loss, and rarer than anybody would.
                logging_steps=len(epochs[-1]),
                save_strategy="no",
                eval_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                dataloader_num_workers=0,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
            ),
            train_dataset=[batch for batches in epochs for batch in batches],
            data_collator=partial(_collate, pad_id=pad_id),
            optimizers=make_optimizer([parameters], [recipe]),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return adapted, float(losses[-1])


def _collate(batches: Sequence[Batch], *, pad_id: int) -> dict[str, Tensor]:
    (batch,) = batches
    return pad_right(batch, pad_id)
