"""Holds the adapters of all slots as tensors, and which part of them each slot covers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from objectives.bank.adapters import AdapterGroup, Layout
from objectives.bank.sizes import index_places


class SlotWeights:
    """Weights with what the optimizer keeps of them, each (places, ranks, width of the layout).

    A slot has one place. Places are taken in order of rank, so that slots of like rank are
    neighbours, and computing them together needs no copy.

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
        self._places = list(range(slots))
        self._ranks = [0] * slots
        self._positions = [range(0)] * slots

    def cover(self, slot: int, *, rank: int, positions: range, scale: float) -> None:
        """Say what an empty slot's adapter covers and what its output is multiplied by."""
        self._ranks[slot] = rank
        self._positions[slot] = positions
        self._scales[self._places[slot]] = scale
        self._order_by_rank()

    def clear(self, slot: int) -> None:
        """Make a slot empty: all its numbers are zero."""
        for tensor in self._tensors():
            tensor[self._places[slot]] = 0
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
        return self.part(tensor[self._places[slot]], slot, first_column=0)

    def place(self, slot: int) -> int:
        """Return where a slot is in the tensors, until another slot is covered."""
        return self._places[slot]

    def part(self, tensor: Tensor, slot: int, *, first_column: int) -> Tensor:
        """Return what a slot covers of `tensor` (ranks, columns from `first_column` on)."""
        columns = self.layout.columns(self._positions[slot])
        return tensor[
            : self._ranks[slot], columns.start - first_column : columns.stop - first_column
        ]

    def group(self, slots: Sequence[int], positions: range) -> AdapterGroup:
        """Return the adapters of slots, in order of place, at these modules, of one rank."""
        index = index_places([self._places[slot] for slot in slots])
        rank = max(self._ranks[slot] for slot in slots)
        return AdapterGroup(
            weights=self.weights[index, :rank, self.layout.columns(positions)],
            scales=self._scales[index],
        )

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.weights, self.first_moments, self.second_moments, self._scales

    def _order_by_rank(self) -> None:
        """Give higher ranks earlier places, moving as few slots as possible."""
        slot_at = sorted(range(len(self._places)), key=self.place)
        wanted = sorted((self._ranks[slot] for slot in slot_at), reverse=True)
        to = [place for place, rank in enumerate(wanted) if self._ranks[slot_at[place]] != rank]
        if not to:
            return
        origins: dict[int, list[int]] = {}
        for place in to:
            origins.setdefault(self._ranks[slot_at[place]], []).append(place)
        origin = [origins[wanted[place]].pop(0) for place in to]
        for tensor in self._tensors():
            tensor[to] = tensor[origin]
        for place, came_from in zip(to, origin, strict=True):
            self._places[slot_at[came_from]] = place
