"""Chooses which rows of different lengths go together in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby


def batch_rows(
    rows: Sequence[Sequence[int]], slots: Sequence[int], rows_per_batch: int
) -> Iterator[list[int]]:
    """Yield the numbers of the rows in batches of at most `rows_per_batch`, longest rows first.

    Rows of a batch are less than twice as long as each other, and those that begin alike lie side
    by side, so that little is padded and what they share can be read once. A batch that is too
    large for the memory shows early. Equal rows of several slots go together, so that the slots of
    a batch have about equally many rows; within a batch rows lie slot by slot. That is the order
    in which a bank need not move or pad rows.

    Args:
        rows: The token ids of every row.
        slots: The slot of every row.
        rows_per_batch: The most rows of a batch.

    Raises:
        ValueError: If `rows_per_batch` is below 1.
    """
    if rows_per_batch < 1:
        raise ValueError(f"rows_per_batch: {rows_per_batch} is not allowed; it must be at least 1")
    classes: dict[int, list[int]] = {}
    for row, tokens in enumerate(rows):
        classes.setdefault(len(tokens).bit_length(), []).append(row)
    for _, members in sorted(classes.items(), reverse=True):
        members.sort(key=lambda row: tuple(rows[row]))
        for start in range(0, len(members), rows_per_batch):
            yield sorted(members[start : start + rows_per_batch], key=lambda row: slots[row])


def batch_alike(
    rows: Sequence[Sequence[int]], kinds: Sequence[tuple[int, ...]], rows_per_batch: int
) -> Iterator[list[int]]:
    """Yield the numbers of the rows in batches of one kind each, longest rows first.

    Args:
        rows: The token ids of every row.
        kinds: The kind of every row; its first number says as how many rows each counts.
        rows_per_batch: The most rows of a batch; a single row may count as more.
    """
    order = sorted(range(len(rows)), key=lambda row: (kinds[row], -len(rows[row]), row))
    for kind, alike in groupby(order, key=kinds.__getitem__):
        numbers, size = list(alike), max(1, rows_per_batch // kind[0])
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]
