"""Plain PEFT: a training loop written by hand that keeps the base model between trials."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model

from benchmarks.peers.peft_parts import clip, lora_config, make_optimizer, pad_right
from data.recipes import Recipe
from objectives.bank.batches import Batch


def train_by_hand(model: Any, recipe: Recipe, epochs: list[list[Batch]], *, pad_id: int) -> float:
    """Train one adapter, remove it again, and return the mean loss of its last epoch.

    Args:
        model: The bare base model; it is bare again afterwards.
        recipe: How to train.
        epochs: The batches of every epoch.
        pad_id: Fills rows.
    """
    adapted = get_peft_model(model, lora_config(recipe))
    adapted.train()
    last_loss = train_adapter(adapted, recipe, epochs, pad_id=pad_id)
    adapted.unload()
    model.eval()
    return last_loss


def train_adapter(
    adapted: Any, recipe: Recipe, epochs: list[list[Batch]], *, pad_id: int
) -> float:
    """Train the one adapter of a PEFT model and return the mean loss of the last epoch."""
    parameters = [each for each in adapted.parameters() if each.requires_grad]
    optimizer, schedule = make_optimizer([parameters], [recipe])
    losses: list[torch.Tensor] = []
    for batches in epochs:
        losses.clear()
        for batch in batches:
            loss = adapted(**pad_right(batch, pad_id), use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            clip(parameters)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    return float(torch.stack(losses).mean())
