"""Cuts an epoch's documents into examples and batches, and lays out the batches of a pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from data.recipes import Packing

Example = tuple[int, ...]
Batch = tuple[Example, ...]


def cut_examples(
    documents: Iterable[Sequence[int]], *, cutoff: int, packing: Packing
) -> list[Example]:
    """Return the training examples of one epoch, in order, none longer than `cutoff` tokens.

    Under `separate` a document is one example, cut only where it is longer; under `joined` all
    documents are one text that is cut every `cutoff` tokens. Put end to end the examples are the
    documents again. A document of a single token (no text at all) has nothing to predict and makes
    no example.
    """
    if packing == "joined":
        documents = [tuple(chain.from_iterable(documents))]
    return [
        piece
        for document in documents
        for piece in _cut(tuple(document), cutoff)
        if len(piece) > 1
    ]


def _cut(ids: Example, cutoff: int) -> list[Example]:
    pieces = [ids[start : start + cutoff] for start in range(0, len(ids), cutoff)]
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        # Alone, the last token would have nothing to be predicted from.
        pieces[-2:] = [pieces[-2][:-1], pieces[-2][-1:] + pieces[-1]]
    return pieces


def make_batches(examples: Sequence[Example], batch_size: int) -> list[Batch]:
    """Return the examples in batches of `batch_size`, in order; the last may be smaller."""
    return [
        tuple(examples[start : start + batch_size])
        for start in range(0, len(examples), batch_size)
    ]


def longest_row(batch: Batch) -> int:
    """Return the length of the longest example in tokens."""
    return max(map(len, batch))


def count_predicted(batch: Batch) -> int:
    """Return how many tokens the model is asked to predict: all but each example's first."""
    return sum(map(len, batch)) - len(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassInputs:
    """The batches of several slots as one forward pass needs them.

    `token_ids` (rows, longest) is padded on the right. Counting the entries of `token_ids` row by
    row, `predicting` lists those whose next token is predicted, and `labels` those next tokens.
    `weights` is one over the number of predictions of the token's own slot, so that the weighted
    sum of a slot's token losses is their mean. `counts` says how many predictions each slot has.
    """

    token_ids: Tensor
    predicting: Tensor
    labels: Tensor
    weights: Tensor
    counts: Tensor


def lay_out(batches: Sequence[Batch], *, pad_id: int, device: torch.device) -> PassInputs:
    """Return one pass over all batches, rows slot by slot."""
    rows = [row for batch in batches for row in batch]
    width = max(map(len, rows))
    token_ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    # The last column predicts nothing: what follows it is not there.
    is_predicting = torch.arange(1, width + 1) < lengths[:, None]
    counts = torch.tensor([count_predicted(batch) for batch in batches])
    return PassInputs(
        token_ids=token_ids.to(device),
        predicting=is_predicting.flatten().nonzero().squeeze(1).to(device),
        labels=token_ids[:, 1:][is_predicting[:, :-1]].to(device),
        weights=(1 / counts).repeat_interleave(counts).to(device),
        counts=counts.to(device),
    )
