"""Holds the adapters of all slots as tensors, and which part of them each slot covers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from objectives.bank.adapters import AdapterGroup, Layout
from objectives.bank.sizes import index_slots


class SlotWeights:
    """Weights with what the optimizer keeps of them, each (slots, ranks, width of the layout).

    A slot covers its first ranks and the columns of the modules its adapter is attached to. All
    else is exactly zero; that does not change, because zeros have zero gradients. `gradients` is
    room for those of one pass, in any arrangement.
    """

    def __init__(self, layout: Layout, *, slots: int, max_rank: int, device: torch.device) -> None:
        """Make empty slots."""
        self.layout = layout
        self.weights = torch.zeros((slots, max_rank, layout.width), device=device)
        self.first_moments = torch.zeros_like(self.weights)
        self.second_moments = torch.zeros_like(self.weights)
        self.gradients = torch.empty_like(self.weights)
        self._scales = torch.zeros(slots, device=device)
        self._ranks = [0] * slots
        self._positions = [range(0)] * slots

    def cover(self, slot: int, *, rank: int, positions: range, scale: float) -> None:
        """Say what an empty slot's adapter covers and what its output is multiplied by."""
        self._ranks[slot] = rank
        self._positions[slot] = positions
        self._scales[slot] = scale

    def clear(self, slot: int) -> None:
        """Make a slot empty: all its numbers are zero."""
        for tensor in (self.weights, self.first_moments, self.second_moments, self._scales):
            tensor[slot] = 0
        self._ranks[slot] = 0
        self._positions[slot] = range(0)

    def rank(self, slot: int) -> int:
        """Return how many ranks a slot covers; 0 where it is empty."""
        return self._ranks[slot]

    def positions(self, slots: Iterable[int]) -> range:
        """Return the positions of all modules that any of these slots covers."""
        covered = [self._positions[slot] for slot in slots]
        return range(min(each.start for each in covered), max(each.stop for each in covered))

    def region(self, tensor: Tensor, slot: int) -> Tensor:
        """Return what a slot covers (rank, columns) of one of the three tensors, as a view."""
        return self.part(tensor[slot], slot, first_column=0)

    def part(self, tensor: Tensor, slot: int, *, first_column: int) -> Tensor:
        """Return what a slot covers of `tensor` (ranks, columns from `first_column` on)."""
        columns = self.layout.columns(self._positions[slot])
        return tensor[
            : self._ranks[slot], columns.start - first_column : columns.stop - first_column
        ]

    def group(self, slots: Sequence[int], positions: range) -> AdapterGroup:
        """Return the adapters of `slots` (ascending) at these modules, padded to one rank."""
        index = index_slots(slots)
        rank = max(self._ranks[slot] for slot in slots)
        return AdapterGroup(
            weights=self.weights[index, :rank, self.layout.columns(positions)],
            scales=self._scales[index],
        )
