"""What all ways of training with PEFT have in common: configuration, batches, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from peft import LoraConfig, TaskType
from torch import Tensor, nn

from data.recipes import Recipe
from objectives.bank.adam import MAX_GRADIENT_NORM
from objectives.bank.batches import Batch
from objectives.models.linear_modules import PART_OF_SUFFIX

IGNORED_LABEL = -100


def lora_config(recipe: Recipe) -> LoraConfig:
    """Return a recipe's adapter as PEFT describes it."""
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        target_modules=[
            suffix
            for suffix, part in PART_OF_SUFFIX.items()
            if recipe.target_modules in ("all", part)
        ],
    )


def pad_right(batch: Batch, pad_id: int) -> dict[str, Tensor]:
    """Return a batch as a model reads it, with its labels.

    There is no attention mask: tokens come before the padding of their row and never see it, and
    without a mask causal attention takes its fast path.
    """
    width = max(map(len, batch))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in batch])
    lengths = torch.tensor([[len(row)] for row in batch])
    is_padding = torch.arange(width) >= lengths
    return {"input_ids": ids, "labels": ids.masked_fill(is_padding, IGNORED_LABEL)}


def make_optimizer(
    parameters_of: Sequence[Sequence[nn.Parameter]], recipes: Sequence[Recipe]
) -> tuple[torch.optim.Optimizer, Any]:
    """Return AdamW, in its fused form, with a group and a warm-up of its own for every recipe."""
    optimizer = torch.optim.AdamW(
        [
            {
                "params": list(parameters),
                "lr": recipe.learning_rate,
                "weight_decay": recipe.weight_decay,
            }
            for parameters, recipe in zip(parameters_of, recipes, strict=True)
        ],
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [_warm_up(recipe.warmup_steps) for recipe in recipes]
    )
    return optimizer, schedule


def _warm_up(steps: int) -> Callable[[int], float]:
    return lambda done: min(1.0, (done + 1) / max(1, steps))


def clip(parameters: Iterable[nn.Parameter]) -> None:
    """Scale the gradients of one adapter to the norm that all ways clip at."""
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM, foreach=True)
