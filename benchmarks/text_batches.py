"""Turns the texts of a trial's epochs into the batches of tokens that every way trains on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data.recipes import Recipe
from objectives.bank.batches import Batch, cut_examples, make_batches
from objectives.models.base import BaseModel


def batch_texts(
    base: BaseModel, recipe: Recipe, epoch_texts: Iterable[Sequence[str]]
) -> list[list[Batch]]:
    """Return every epoch's batches, as the bank makes them of the same texts."""
    return [
        make_batches(
            cut_examples(
                map(base.encode_document, texts), cutoff=recipe.cutoff, packing=recipe.packing
            ),
            recipe.batch_size,
        )
        for texts in epoch_texts
    ]
