"""Slots are grouped so that padding is small, and slots of like rank are neighbours."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives.bank.adapters import Layout
from objectives.bank.sizes import group_slots, index_places
from objectives.bank.slot_weights import SlotWeights
from objectives.models.base import BaseModel
from objectives.models.linear_modules import find_linear_modules

RANKS = st.sampled_from([1, 4, 8, 16, 32, 256])


@pytest.fixture(scope="module")
def layout(base: BaseModel) -> Layout:
    return Layout(find_linear_modules(base.model))


def test_places_that_follow_each_other_are_a_slice() -> None:
    assert index_places([2, 3, 4]) == slice(2, 5)
    assert index_places([0, 2]) == [0, 2]


@given(
    sizes=st.dictionaries(st.integers(0, 20), st.tuples(RANKS, st.integers(2, 512)), min_size=1)
)
def test_every_slot_is_in_one_group(layout: Layout, sizes: dict[int, tuple[int, int]]) -> None:
    ranks = {slot: rank for slot, (rank, _) in sizes.items()}
    tokens = {slot: count for slot, (_, count) in sizes.items()}
    groups = group_slots(ranks, tokens, layout, device_type="cpu")
    assert sorted(chain.from_iterable(groups)) == sorted(sizes)


def test_small_differences_make_no_group_and_large_ones_do(layout: Layout) -> None:
    def groups_of(ranks: list[int], tokens: list[int]) -> list[list[int]]:
        return [
            sorted(group)
            for group in group_slots(
                dict(enumerate(ranks)), dict(enumerate(tokens)), layout, device_type="cpu"
            )
        ]

    # 2.5 million entries x ranks x features of a module pay a group.
    worth = round(2.5e6 * len(layout.modules) / layout.width)  # entries x ranks
    assert groups_of([8, 8, 8], [100, 90, 80]) == [[0, 1, 2]]
    assert groups_of([2, 1, 2], [worth + 1, worth + 1, worth + 1]) == [[0, 2], [1]]
    assert groups_of([2, 1, 2], [worth - 1, worth - 1, worth - 1]) == [[0, 1, 2]]
    assert groups_of([1, 1, 1], [10, worth + 10, 10]) == [[1], [0, 2]]
    assert groups_of([1, 1, 1], [10, worth // 2 - 10, 10]) == [[0, 1, 2]]


@given(
    events=st.lists(st.tuples(st.integers(0, 6), RANKS.filter(lambda rank: rank < 256))),
)
def test_slots_keep_what_is_theirs_and_stand_in_order_of_rank(
    layout: Layout, events: list[tuple[int, int]]
) -> None:
    weights = SlotWeights(layout, slots=7, max_rank=32, device=torch.device("cpu"))
    mark_of: dict[int, float] = {}
    for number, (slot, rank) in enumerate(events, start=1):
        if slot in mark_of:
            weights.clear(slot)
            del mark_of[slot]
        else:
            weights.cover(slot, rank=rank, positions=range(1), scale=number)
            weights.region(weights.weights, slot).fill_(number)
            mark_of[slot] = number
            taken = sorted(mark_of, key=weights.place)
            ranks = [weights.rank(slot) for slot in taken]
            assert ranks == sorted(ranks, reverse=True)
            assert [weights.place(slot) for slot in taken] == list(range(len(taken)))
        for held, mark in mark_of.items():
            assert (weights.region(weights.weights, held) == mark).all()
            assert weights.group([held], range(1)).scales.tolist() == [mark]
    assert sorted(map(weights.place, range(7))) == list(range(7))
