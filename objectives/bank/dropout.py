"""Draws the dropout of adapters' inputs so that no trial's draws depend on another trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.bank.seeds import derive_seed
from objectives.models.passes.blocks import Entries


@dataclass(frozen=True, slots=True, kw_only=True)
class DropoutStream:
    """One slot's part of a pass: what fixes its draws, and which of its entries are tokens."""

    probability: float
    seed: int
    step: int
    places: Entries


def draw_dropout(
    streams: Sequence[DropoutStream],
    module_name: str,
    *,
    entries_per_slot: int,
    features: int,
    device: torch.device,
) -> Tensor:
    """Return what a module's input is multiplied by, (slots, entries_per_slot, features).

    At a slot's tokens an entry is 0 with the slot's probability p and 1 / (1 - p) otherwise; it is
    1 where a slot has no dropout and in its padding. The draws are a function of seed, step and
    module and are made for the slot's own tokens, so neither neighbours nor a restart change them.
    """
    factors = torch.ones((len(streams), entries_per_slot, features), device=device)
    generator = torch.Generator(device)
    for stream, own in zip(streams, factors, strict=True):
        if stream.probability == 0:
            continue
        generator.manual_seed(derive_seed(stream.seed, "dropout", stream.step, module_name))
        shape = (len(stream.places), features)
        kept = torch.rand(shape, generator=generator, device=device) >= stream.probability
        own[torch.from_numpy(stream.places).to(device)] = kept / (1 - stream.probability)
    return factors
