"""Slots are grouped so that padding stays small."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from objectives.bank.sizes import group_by_size, index_slots


def test_slots_that_follow_each_other_are_a_slice() -> None:
    assert index_slots([2, 3, 4]) == slice(2, 5)
    assert index_slots([0, 2]) == [0, 2]


@given(st.dictionaries(st.integers(0, 20), st.integers(2, 512), max_size=12))
def test_padding_never_more_than_doubles_a_slot(sizes: dict[int, int]) -> None:
    groups = group_by_size(sizes)
    assert sorted(chain.from_iterable(groups)) == sorted(sizes)
    for group in groups:
        assert group == sorted(group)
        assert max(sizes[slot] for slot in group) <= 2 * min(sizes[slot] for slot in group)


def test_slots_of_like_size_are_one_group() -> None:
    assert group_by_size({0: 28, 1: 17, 2: 30, 3: 256, 4: 15}) == [[3], [0, 1, 2, 4]]
