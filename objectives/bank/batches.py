"""Cuts an epoch's documents into examples and batches, and lays out the batches of a pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from data.recipes import Packing
from objectives.models.base import BaseModel
from objectives.models.passes.blocks import Entries
from objectives.models.passes.reading import Rows, lay_out_rows

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


def count_predicted(batch: Batch) -> int:
    """Return how many tokens the model is asked to predict: all but each example's first.

    It reads as many: all but each example's last, from which nothing is predicted.
    """
    return sum(map(len, batch)) - len(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassInputs:
    """The batches of several slots as one forward pass needs them.

    `entries_of` lists each slot's entries of `rows`, padding included, and `places_of` which of
    those are tokens. `predicting` lists the entries whose next token is predicted and `labels`
    those next tokens, slot by slot. `weights` is one over the number of predictions of the token's
    own slot, so that the weighted sum of a slot's token losses is their mean. `counts` says how
    many predictions each slot has.
    """

    rows: Rows
    entries_of: tuple[Entries, ...]
    places_of: tuple[Entries, ...]
    predicting: Tensor
    labels: Tensor
    weights: Tensor
    counts: Tensor


def lay_out(base: BaseModel, batches: Sequence[Batch]) -> PassInputs:
    """Return one pass over all batches, rows slot by slot."""
    examples = [example for batch in batches for example in batch]
    rows = lay_out_rows(base, [example[:-1] for example in examples])
    slot_of_row = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    entries_of = [
        np.flatnonzero(slot_of_row[rows.owners] == place) for place in range(len(batches))
    ]
    tokens_of = [
        np.concatenate([rows.entries_of[row] for row in np.flatnonzero(slot_of_row == place)])
        for place in range(len(batches))
    ]
    counts = torch.tensor([count_predicted(batch) for batch in batches])
    predicting = np.concatenate(rows.entries_of)
    labels = torch.tensor([token for example in examples for token in example[1:]])
    return PassInputs(
        rows=rows,
        entries_of=tuple(entries_of),
        places_of=tuple(
            np.searchsorted(entries, tokens)
            for entries, tokens in zip(entries_of, tokens_of, strict=True)
        ),
        predicting=torch.from_numpy(predicting).to(base.device),
        labels=labels.to(base.device),
        weights=(1 / counts).repeat_interleave(counts).to(base.device),
        counts=counts.to(base.device),
    )
