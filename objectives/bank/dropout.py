"""Draws the dropout of adapters' inputs so that no trial's draws depend on another trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.bank.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class DropoutStream:
    """One slot's part of a pass: what fixes its draws, and its rows and longest row in tokens."""

    probability: float
    seed: int
    step: int
    rows: int
    longest: int


def draw_dropout(
    streams: Sequence[DropoutStream],
    module_name: str,
    *,
    rows_per_slot: int,
    longest: int,
    features: int,
    device: torch.device,
) -> Tensor:
    """Return what a module's input is multiplied by, (slots, rows_per_slot * longest, features).

    An entry is 0 with the slot's probability p and 1 / (1 - p) otherwise; 1 where a slot has no
    dropout and in its padding. The draws are a function of seed, step and module and have the
    shape of the slot's own batch, so neither neighbours nor a restart change them.
    """
    factors = torch.ones((len(streams), rows_per_slot, longest, features), device=device)
    generator = torch.Generator(device)
    for stream, own in zip(streams, factors, strict=True):
        if stream.probability == 0:
            continue
        generator.manual_seed(derive_seed(stream.seed, "dropout", stream.step, module_name))
        shape = (stream.rows, stream.longest, features)
        kept = torch.rand(shape, generator=generator, device=device) >= stream.probability
        own[: stream.rows, : stream.longest] = kept / (1 - stream.probability)
    return factors.view(len(streams), rows_per_slot * longest, features)
