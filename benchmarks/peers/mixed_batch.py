"""PEFT's mixed batches put to training: several adapters in one pass, which PEFT allows in eval.

In training mode PEFT refuses rows of different adapters; in evaluation mode it takes them, and
gradients flow all the same. That is right as long as nothing drops out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.peft_parts import IGNORED_LABEL, clip, lora_config, make_optimizer, pad_right
from data.recipes import Recipe
from objectives.bank.batches import Batch


def train_in_mixed_batches(
    model: Any, recipes: Sequence[Recipe], epochs_of: Sequence[list[list[Batch]]], *, pad_id: int
) -> list[float]:
    """Train one adapter per recipe, all with equally many batches; return their last losses.

    Each keeps its own mean loss, gradient clipping, learning rate and warm-up.

    Args:
        model: The bare base model; it is bare again afterwards.
        recipes: How to train; without dropout.
        epochs_of: The batches of every epoch of every recipe.
        pad_id: Fills rows.

    Returns:
        The mean loss over the last epoch of each.
    """
    names = [str(number) for number in range(len(recipes))]
    adapted = get_peft_model(model, lora_config(recipes[0]), adapter_name=names[0])
    for name, recipe in zip(names[1:], recipes[1:], strict=True):
        adapted.add_adapter(name, lora_config(recipe))
    parameters_of = [
        [each for key, each in adapted.named_parameters() if f".{name}.weight" in key]
        for name in names
    ]
    for parameter in chain.from_iterable(parameters_of):
        parameter.requires_grad_(True)
    adapted.eval()
    optimizer, schedule = make_optimizer(parameters_of, recipes)
    losses: list[Tensor] = []
    for epoch in range(len(epochs_of[0])):
        losses.clear()
        for batches in zip(*(epochs[epoch] for epochs in epochs_of), strict=True):
            counts = torch.tensor([len(batch) for batch in batches])
            inputs = pad_right(tuple(chain.from_iterable(batches)), pad_id)
            labels = inputs.pop("labels")[:, 1:]
            rows = [name for name, batch in zip(names, batches, strict=True) for _ in batch]
            logits = adapted(**inputs, adapter_names=rows, use_cache=False).logits[:, :-1]
            token_losses = functional.cross_entropy(
                logits.flatten(0, 1),
                labels.flatten(),
                ignore_index=IGNORED_LABEL,
                reduction="none",
            ).view(labels.shape)
            predicted = (labels != IGNORED_LABEL).sum(1)
            own = torch.segment_reduce(token_losses.sum(1), "sum", lengths=counts)
            means = own / torch.segment_reduce(predicted.float(), "sum", lengths=counts)
            optimizer.zero_grad()
            torch.autograd.backward(means.sum())
            for parameters in parameters_of:
                clip(parameters)
            optimizer.step()
            schedule.step()
            losses.append(means.detach())
    adapted.unload()
    return [float(loss) for loss in torch.stack(losses).mean(0)]
