"""Updates the adapters of several slots at once: gradient clipping, AdamW and the warm-up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

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


def clip_gradients(gradients: Sequence[Tensor], norms: Sequence[float]) -> None:
    """Scale each slot's gradient, in place, to a norm of at most 1.

    The formula is that of `torch.nn.utils.clip_grad_norm_`, for each slot by itself.

    Args:
        gradients: One (rank, columns) per slot.
        norms: The Euclidean norm of each; finite.
    """
    for gradient, norm in zip(gradients, norms, strict=True):
        if (factor := MAX_GRADIENT_NORM / (norm + 1e-6)) < 1:
            gradient.mul_(factor)


def update_weights(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    *,
    recipes: Sequence[Recipe],
    steps: Sequence[int],
) -> None:
    """Take one AdamW step for every slot given, in place, by torch's fused kernel.

    Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019. Weights that are zero with
    zero gradients and moments stay exactly zero.

    Args:
        weights: One (rank, columns) per slot, as the other three.
        gradients: After clipping.
        first_moments: Running means of the gradients.
        second_moments: Running means of their squares.
        recipes: Learning rate, warm-up and weight decay of each slot.
        steps: The number of each slot's step, counted from 1.
    """
    device = weights[0].device
    steps_before = torch.tensor([step - 1.0 for step in steps], device=device).unbind()
    for *tensors, recipe, step, step_before in zip(
        weights,
        gradients,
        first_moments,
        second_moments,
        recipes,
        steps,
        steps_before,
        strict=True,
    ):
        parameters, own_gradients, own_first, own_second = _contiguous_parts(tensors)
        adamw(
            parameters,
            own_gradients,
            own_first,
            own_second,
            [],
            [step_before.clone() for _ in parameters],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=learning_rate_at(recipe, step),
            weight_decay=recipe.weight_decay,
            eps=EPSILON,
            maximize=False,
        )


def _contiguous_parts(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return tensors (rank, columns) as the kernel takes them: whole, or else row by row."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return [[tensor] for tensor in tensors]
    return [list(tensor.unbind()) for tensor in tensors]
