"""Updates the adapters of several slots at once: gradient clipping, AdamW and the warm-up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.recipes import Recipe

MAX_GRADIENT_NORM = 1.0
BETA1 = 0.9
BETA2 = 0.999
EPSILON = 1e-8


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """Return the rate of step `step`, counted from 1: it rises linearly, then stays."""
    if recipe.warmup_steps == 0:
        return recipe.learning_rate
    return recipe.learning_rate * min(1.0, step / recipe.warmup_steps)


def clip_gradients(gradients: Tensor, norms: Tensor) -> None:
    """Scale each slot's gradient, in place, to a norm of at most 1.

    The formula is that of `torch.nn.utils.clip_grad_norm_`, for each slot by itself.

    Args:
        gradients: (slots, ranks, columns).
        norms: (slots), the Euclidean norm of each slot's whole gradient; finite.
    """
    gradients.mul_((MAX_GRADIENT_NORM / (norms + 1e-6)).clamp(max=1.0).view(-1, 1, 1))


def update_weights(
    weights: Tensor,
    gradients: Tensor,
    first_moments: Tensor,
    second_moments: Tensor,
    *,
    recipes: Sequence[Recipe],
    steps: Sequence[int],
) -> None:
    """Take one AdamW step for every slot given, in place; as `torch.optim.AdamW` does.

    Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019. Weights that are zero with
    zero gradients and moments stay exactly zero.

    Args:
        weights: (slots, ranks, columns), as the other three.
        gradients: After clipping.
        first_moments: Running mean of the gradients.
        second_moments: Running mean of their squares.
        recipes: Learning rate, warm-up and weight decay of each slot.
        steps: The number of each slot's step, counted from 1.
    """
    rates = [learning_rate_at(recipe, step) for recipe, step in zip(recipes, steps, strict=True)]
    step_sizes = [rate / (1 - BETA1**step) for rate, step in zip(rates, steps, strict=True)]
    second_corrections = [(1 - BETA2**step) ** 0.5 for step in steps]
    decays = [rate * recipe.weight_decay for rate, recipe in zip(rates, recipes, strict=True)]

    if any(decays):
        weights.mul_(_per_slot([1 - decay for decay in decays], weights))
    first_moments.lerp_(gradients, 1 - BETA1)
    second_moments.mul_(BETA2).addcmul_(gradients, gradients, value=1 - BETA2)
    # step_size * m / (sqrt(v) / correction + eps), with step_size moved into the denominator,
    # which saves two passes over tensors of this size.
    inverse = [1 / (c * size) for c, size in zip(second_corrections, step_sizes, strict=True)]
    denominators = torch.addcmul(
        _per_slot([EPSILON / size for size in step_sizes], weights),
        second_moments.sqrt(),
        _per_slot(inverse, weights),
    )
    weights.addcdiv_(first_moments, denominators, value=-1)


def _per_slot(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
