"""Clipping, AdamW and the warm-up are torch's own, one slot by itself at a time."""

from __future__ import annotations

import dataclasses

import torch

from data.recipes import Recipe
from objectives.bank.adam import clip_gradients, learning_rate_at, update_weights

RECIPE = Recipe(epochs=1, rank=2, alpha=4, cutoff=64, warmup_steps=4, learning_rate=0.01)


def test_updates_equal_torch_adamw_slot_by_slot() -> None:
    recipes = [
        RECIPE,
        dataclasses.replace(RECIPE, warmup_steps=0, learning_rate=0.1),
        dataclasses.replace(RECIPE, weight_decay=0.1),
    ]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn((3, 2, 5), generator=generator)
    first_moments, second_moments = torch.zeros(3, 2, 5), torch.zeros(3, 2, 5)
    references = [torch.nn.Parameter(slot.clone()) for slot in weights]
    optimizers = [
        torch.optim.AdamW([reference], weight_decay=recipe.weight_decay)
        for reference, recipe in zip(references, recipes, strict=True)
    ]
    for step in range(1, 21):
        gradients = torch.randn((3, 2, 5), generator=generator) * 10.0**-step
        for reference, optimizer, recipe, gradient in zip(
            references, optimizers, recipes, gradients, strict=True
        ):
            rise = min(1, step / recipe.warmup_steps) if recipe.warmup_steps else 1
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * rise
            reference.grad = gradient.clone()
            torch.nn.utils.clip_grad_norm_([reference], 1.0)
            optimizer.step()
        clip_gradients(list(gradients), torch.linalg.vector_norm(gradients, dim=(1, 2)).tolist())
        update_weights(
            list(weights),
            list(gradients),
            list(first_moments),
            list(second_moments),
            recipes=recipes,
            steps=[step] * 3,
        )
    torch.testing.assert_close(weights, torch.stack([*references]).detach(), atol=1e-6, rtol=1e-6)


def test_the_rate_rises_by_equal_parts_and_then_stays() -> None:
    rates = [learning_rate_at(RECIPE, step) for step in range(1, 7)]
    assert rates == [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01]
    assert learning_rate_at(dataclasses.replace(RECIPE, warmup_steps=0), 1) == 0.01
