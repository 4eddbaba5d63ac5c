"""Gradient checkpointing of a model that stays in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from objectives.models.base import ModelError


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """During it, a layer's inner values are computed again in the backward pass, not kept.

    The layers themselves are in training mode for that long, which is what transformers asks for;
    what is inside them is not, so that a base model's own dropout stays off.

    Raises:
        ModelError: If the model has no such layers.
    """
    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"gradient_checkpointing: {type(model).__name__} does not support it; leave it off"
        )
    for layer in layers:
        layer.training = layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.training = layer.gradient_checkpointing = False
