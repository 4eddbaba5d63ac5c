"""Says which rows of a forward pass belong to which slot, and moves rows to slots and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SlotIndex = slice | list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The rows of each slot, brought to the same number per slot so that one product serves all.

    `slots` are the adapted slots in ascending order and `rows_per_slot` the most rows any of them
    has. `gathered` (slots * rows_per_slot) lists the rows slot by slot; a slot with fewer rows
    repeats its own first row, never a neighbour's, whose NaN would spread. `adapted` lists the
    rows that have an adapter and `places` where each of them stands in `gathered`. All three are
    None when the rows already lie slot by slot in equal numbers: then nothing is moved.
    `row_count` is the number of rows in all.
    """

    row_count: int
    slots: tuple[int, ...]
    rows_per_slot: int
    gathered: Tensor | None
    adapted: Tensor | None
    places: Tensor | None

    def to_slots(self, rows: Tensor) -> Tensor:
        """Return (slots, rows_per_slot * time, features) from (rows, time, features).

        Raises:
            ValueError: If there are more or fewer rows than were announced.
        """
        if len(rows) != self.row_count:
            raise ValueError(
                f"rows: the pass has {len(rows)}; it must have {self.row_count}, one per row slot"
            )
        if self.gathered is not None:
            rows = rows.index_select(0, self.gathered)
        return rows.reshape(len(self.slots), -1, rows.shape[-1])


def route_rows(row_slots: Sequence[int], device: torch.device) -> Routing:
    """Return the routing of rows; row `i` belongs to slot `row_slots[i]`, or to none (-1)."""
    rows_of: dict[int, list[int]] = {slot: [] for slot in sorted(set(row_slots)) if slot >= 0}
    for row, slot in enumerate(row_slots):
        if slot >= 0:
            rows_of[slot].append(row)
    rows_per_slot = max(map(len, rows_of.values()), default=0)
    gathered = [
        row
        for rows in rows_of.values()
        for row in [*rows, *rows[:1] * (rows_per_slot - len(rows))]
    ]
    if gathered == list(range(len(row_slots))):
        return Routing(
            row_count=len(row_slots),
            slots=tuple(rows_of),
            rows_per_slot=rows_per_slot,
            gathered=None,
            adapted=None,
            places=None,
        )
    place_of = {
        row: position * rows_per_slot + offset
        for position, rows in enumerate(rows_of.values())
        for offset, row in enumerate(rows)
    }
    return Routing(
        row_count=len(row_slots),
        slots=tuple(rows_of),
        rows_per_slot=rows_per_slot,
        gathered=torch.tensor(gathered, dtype=torch.long, device=device),
        adapted=torch.tensor(list(place_of), dtype=torch.long, device=device),
        places=torch.tensor(list(place_of.values()), dtype=torch.long, device=device),
    )


def index_slots(slots: Sequence[int]) -> SlotIndex:
    """Return how to index the slot dimension: by a slice, which makes a view, if it can be."""
    first, last = slots[0], slots[-1]
    if list(slots) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return list(slots)


def group_by_size(sizes: dict[int, int]) -> list[list[int]]:
    """Return the slots in groups that are padded to their largest size (rows' length, or rank).

    A slot joins a group only if that makes it at most twice as large. Groups come largest first,
    the slots within a group in ascending order.
    """
    groups: list[list[int]] = []
    largest = 0
    for slot in sorted(sizes, key=lambda slot: -sizes[slot]):
        if not groups or 2 * sizes[slot] < largest:
            groups.append([])
            largest = sizes[slot]
        groups[-1].append(slot)
    return [sorted(group) for group in groups]
