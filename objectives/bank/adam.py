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


def clip_gradients(gradients: list[Tensor], norms: Sequence[float]) -> None:
    """Scale each slot's gradient, in place, to a norm of at most 1.

    The formula is that of `torch.nn.utils.clip_grad_norm_`, for each slot by itself.

    Args:
        gradients: One (rank, columns) per slot.
        norms: The Euclidean norm of each; finite.
    """
    factors = [min(1.0, MAX_GRADIENT_NORM / (norm + 1e-6)) for norm in norms]
    torch._foreach_mul_(gradients, factors)


def update_weights(
    weights: list[Tensor],
    gradients: list[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    *,
    recipes: Sequence[Recipe],
    steps: Sequence[int],
) -> None:
    """Take one AdamW step for every slot given, in place; as `torch.optim.AdamW` does.

    Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019. Weights that are zero with
    zero gradients and moments stay exactly zero.

    Args:
        weights: One (rank, columns) per slot, as the other three.
        gradients: After clipping; they are used up.
        first_moments: Running means of the gradients.
        second_moments: Running means of their squares.
        recipes: Learning rate, warm-up and weight decay of each slot.
        steps: The number of each slot's step, counted from 1.
    """
    rates = [learning_rate_at(recipe, step) for recipe, step in zip(recipes, steps, strict=True)]
    step_sizes = [rate / (1 - BETA1**step) for rate, step in zip(rates, steps, strict=True)]
    second_corrections = [(1 - BETA2**step) ** 0.5 for step in steps]
    decays = [rate * recipe.weight_decay for rate, recipe in zip(rates, recipes, strict=True)]

    # torch's own optimizers are built of these functions; each takes a list of tensors with a
    # number for each.
    if any(decays):
        torch._foreach_mul_(weights, [1 - decay for decay in decays])
    torch._foreach_lerp_(first_moments, gradients, 1 - BETA1)
    torch._foreach_mul_(second_moments, BETA2)
    torch._foreach_addcmul_(second_moments, gradients, gradients, value=1 - BETA2)
    # step_size * m / (sqrt(v) / correction + eps), with step_size moved into the denominator,
    # and the denominator in the gradient's place, which is not needed any more.
    torch._foreach_copy_(gradients, second_moments)
    torch._foreach_sqrt_(gradients)
    inverse = [1 / (c * size) for c, size in zip(second_corrections, step_sizes, strict=True)]
    torch._foreach_mul_(gradients, inverse)
    torch._foreach_add_(gradients, [EPSILON / size for size in step_sizes])
    torch._foreach_addcdiv_(weights, first_moments, gradients, value=-1)
