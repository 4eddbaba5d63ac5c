"""Says which slots are computed together: those of nearly equal size."""

from __future__ import annotations

from collections.abc import Sequence

SlotIndex = slice | list[int]


def index_slots(slots: Sequence[int]) -> SlotIndex:
    """Return how to index the slot dimension: by a slice, which makes a view, if it can be."""
    first, last = slots[0], slots[-1]
    if list(slots) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return list(slots)


def group_by_size(sizes: dict[int, int]) -> list[list[int]]:
    """Return the slots in groups that are padded to their largest size (tokens, or rank).

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
