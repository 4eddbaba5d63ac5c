"""Puts rows of different lengths side by side: which go together, and how they are padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.models.base import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedRows:
    """Token ids (rows, width) padded on the left, so that every row's next token comes last.

    `mask` is 1 where a row has a token; `positions` count a row's own tokens from 0, so that
    padding does not move them.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor


def pad_left(rows: Sequence[Sequence[int]], base: BaseModel) -> PaddedRows:
    """Return rows of token ids as one batch on the model's device."""
    width = max(map(len, rows))
    ids = torch.tensor([[base.pad_id] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([[len(row)] for row in rows])
    positions = torch.arange(width) - (width - lengths)
    return PaddedRows(
        ids=ids.to(base.device),
        mask=(positions >= 0).long().to(base.device),
        positions=positions.clamp(min=0).to(base.device),
    )


def batch_rows(
    rows: Sequence[Sequence[int]], slots: Sequence[int], rows_per_batch: int
) -> Iterator[list[int]]:
    """Yield the numbers of the rows in batches of at most `rows_per_batch`, longest rows first.

    Rows of nearly equal length share a batch, so little is padded, and a batch that is too large
    for the memory shows at once. Equal rows of several slots go together, so that the slots of a
    batch have about equally many rows; within a batch rows lie slot by slot. That is the order in
    which a bank need not move or pad rows.

    Args:
        rows: The token ids of every row.
        slots: The slot of every row.
        rows_per_batch: The most rows of a batch.

    Raises:
        ValueError: If `rows_per_batch` is below 1.
    """
    if rows_per_batch < 1:
        raise ValueError(f"rows_per_batch: {rows_per_batch} is not allowed; it must be at least 1")
    order = sorted(range(len(rows)), key=lambda row: (-len(rows[row]), rows[row]))
    for start in range(0, len(order), rows_per_batch):
        yield sorted(order[start : start + rows_per_batch], key=lambda row: slots[row])
