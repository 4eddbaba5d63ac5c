"""Says which slots are computed together: those of nearly equal size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from objectives.bank.adapters import Layout
from objectives.models.passes.blocks import cut_where_it_pays

SlotIndex = slice | list[int]

# A group of its own costs the launch of its products; padding costs multiplications. They cost
# alike at so many entries x ranks x features of a module: measured on two CPU cores with the
# pocket model, and estimated for GPUs, which multiply faster and launch no faster.
_PADDING_WORTH_A_GROUP = {"cpu": 2.5e6, "cuda": 2.5e8}


def index_places(places: Sequence[int]) -> SlotIndex:
    """Return how to index ascending places: by a slice, which makes a view, if it can be."""
    first, last = places[0], places[-1]
    if list(places) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return list(places)


def group_slots(
    ranks: Mapping[int, int], tokens: Mapping[int, int], layout: Layout, *, device_type: str
) -> list[list[int]]:
    """Return the slots in groups that are padded to the largest rank and number of tokens in each.

    Args:
        ranks: Of each slot.
        tokens: Of each slot in this pass.
        layout: Of the adapters' weights.
        device_type: What computes: `cpu` or `cuda`.
    """
    per_module = _PADDING_WORTH_A_GROUP.get(device_type, _PADDING_WORTH_A_GROUP["cpu"])
    worth = per_module * len(layout.modules) / layout.width  # in entries x ranks
    most_tokens = max(tokens.values())
    return [
        group
        for same_rank in _group(ranks, worth / most_tokens)
        for group in _group(
            {slot: tokens[slot] for slot in same_rank}, worth / max(ranks[s] for s in same_rank)
        )
    ]


def _group(sizes: Mapping[int, int], least_saving: float) -> list[list[int]]:
    largest_first = sorted(sizes, key=lambda slot: -sizes[slot])
    runs = cut_where_it_pays([sizes[slot] for slot in largest_first], least_saving=least_saving)
    return [[largest_first[place] for place in run] for run in runs]
