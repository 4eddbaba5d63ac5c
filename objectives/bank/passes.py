"""Lays the batches of several slots out as one pass, and takes their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from objectives.bank.adapters import AdapterGroup, Dropout, Layout, adapters_attached
from objectives.bank.batches import Batch, PassInputs, count_predicted, lay_out
from objectives.bank.dropout import DropoutStream, draw_dropout
from objectives.bank.sizes import group_slots
from objectives.bank.slot_weights import SlotWeights
from objectives.models.base import BaseModel
from objectives.models.passes.blocks import Blocks, Entries, lay_in_blocks
from objectives.models.passes.reading import attending, logits_only_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStep:
    """What one slot trains on in a pass: its batch, and what fixes its dropout."""

    batch: Batch
    dropout: float
    seed: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPass:
    """One forward and backward pass over the batches of several slots.

    `adapters` has those of each of `blocks`. `gradients` are each slot's own (rank, columns of its
    modules), as views of where the pass writes. `padding_of` counts the entries that were added to
    make each slot as large as its neighbours. The adapters' products grow with entries times
    ranks: `work` counts those, `own_work` without any padding.
    """

    inputs: PassInputs
    positions: range
    adapters: tuple[AdapterGroup, ...]
    blocks: Blocks
    gradients: Mapping[int, Tensor]
    padding_of: Mapping[int, int]
    work: int
    own_work: int


def lay_out_pass(
    base: BaseModel, slot_weights: SlotWeights, steps: Mapping[int, SlotStep]
) -> TrainingPass:
    """Return a pass over a step of every slot given.

    Slots are padded to others of their group only, where a group of their own would cost more.
    """
    ranks = {slot: slot_weights.rank(slot) for slot in steps}
    tokens = {slot: count_predicted(step.batch) for slot, step in steps.items()}
    groups = [
        sorted(group, key=slot_weights.place)
        for group in group_slots(
            ranks,
            tokens,
            slot_weights.layout,
            device_type=base.device.type,
        )
    ]
    slots = [slot for group in groups for slot in group]
    inputs = lay_out(base, [steps[slot].batch for slot in slots])
    entries_of = dict(zip(slots, inputs.entries_of, strict=True))
    places_of = dict(zip(slots, inputs.places_of, strict=True))
    positions = slot_weights.positions(slots)
    first_column = slot_weights.layout.columns(positions).start
    blocks = lay_in_blocks(
        [[entries_of[slot] for slot in group] for group in groups],
        inputs.rows.entries,
        device=base.device,
    )
    adapters: list[AdapterGroup] = []
    gradients: dict[int, Tensor] = {}
    padding_of: dict[int, int] = {}
    room = slot_weights.gradients.view(-1)
    for group, (_, entries_per_slot) in zip(groups, blocks.shapes, strict=True):
        own = slot_weights.group(group, positions)
        count = own.weights.numel()
        written, room = room[:count].view_as(own.weights), room[count:]
        dropout = _make_dropout(
            [steps[slot] for slot in group],
            [places_of[slot] for slot in group],
            slot_weights.layout,
            entries_per_slot,
            base.device,
        )
        adapters.append(replace(own, gradients=written, dropout=dropout))
        for slot, gradient in zip(group, written, strict=True):
            gradients[slot] = slot_weights.part(gradient, slot, first_column=first_column)
            padding_of[slot] = entries_per_slot - tokens[slot]
    return TrainingPass(
        inputs=inputs,
        positions=positions,
        adapters=tuple(adapters),
        blocks=blocks,
        gradients=gradients,
        padding_of=padding_of,
        work=sum(
            padded.weights.shape[1] * slots_of * entries
            for padded, (slots_of, entries) in zip(adapters, blocks.shapes, strict=True)
        ),
        own_work=sum(ranks[slot] * tokens[slot] for slot in steps),
    )


def differentiate(
    base: BaseModel,
    layout: Layout,
    training_pass: TrainingPass,
    recomputing: AbstractContextManager[None],
) -> tuple[dict[int, float], dict[int, float]]:
    """Fill in the gradients of a pass.

    Args:
        base: The model.
        layout: Of the adapters' weights.
        training_pass: What to compute.
        recomputing: A context for the pass, which may make it keep less.

    Returns:
        Each slot's mean loss in nats per predicted token, and the norm of its gradient.
    """
    model, inputs = base.model, training_pass.inputs
    with (
        adapters_attached(
            layout, training_pass.positions, training_pass.adapters, training_pass.blocks
        ),
        attending(model, inputs.rows) as arguments,
        logits_only_of(model, inputs.predicting),
        recomputing,
    ):
        logits = model(**arguments).logits
        token_losses = functional.cross_entropy(logits.float(), inputs.labels, reduction="none")
        # Not the gradient of a sum over slots: one slot's NaN would be in that sum.
        torch.autograd.backward(token_losses, inputs.weights)
    losses = torch.segment_reduce(token_losses.detach(), "mean", lengths=inputs.counts)
    slots = list(training_pass.gradients)
    norms = torch.stack(torch._foreach_norm(list(training_pass.gradients.values())))
    # One transfer for all, because on a GPU each of them waits for the device.
    values = torch.stack([losses, norms]).tolist()
    loss_of, norm_of = (dict(zip(slots, row, strict=True)) for row in values)
    return loss_of, norm_of


def _make_dropout(
    steps: Sequence[SlotStep],
    places_of: Sequence[Entries],
    layout: Layout,
    entries_per_slot: int,
    device: torch.device,
) -> Dropout | None:
    if not any(step.dropout for step in steps):
        return None
    streams = [
        DropoutStream(probability=step.dropout, seed=step.seed, step=step.number, places=places)
        for step, places in zip(steps, places_of, strict=True)
    ]
    return partial(_draw_at, streams, layout, entries_per_slot, device)


def _draw_at(
    streams: Sequence[DropoutStream],
    layout: Layout,
    entries_per_slot: int,
    device: torch.device,
    position: int,
) -> Tensor:
    module = layout.modules[position]
    return draw_dropout(
        streams,
        module.name,
        entries_per_slot=entries_per_slot,
        features=module.in_features,
        device=device,
    )
