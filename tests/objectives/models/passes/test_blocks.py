"""Entries laid in blocks are found again, and what pads a group is its own and has no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from objectives.models.passes.blocks import Blocks, lay_in_blocks

CPU = torch.device("cpu")

Group = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Entries in groups of blocks, some perhaps in none, and a plain account of how they lie."""

    entries: int
    blocks: tuple[tuple[Group, ...], ...]
    at_end: bool = False

    @property
    def members(self) -> list[int]:
        return sorted(entry for groups in self.blocks for group in groups for entry in group)

    @property
    def places(self) -> list[tuple[int, bool]]:
        """Return the entry at every place, and whether it is there only to fill its group up."""
        places = []
        for groups in self.blocks:
            for group in groups:
                missing = max(map(len, groups)) - len(group)
                own, fillers = [(entry, False) for entry in group], [(group[0], True)] * missing
                places += [*fillers, *own] if self.at_end else [*own, *fillers]
        return places

    def lay_out(self) -> Blocks:
        groups = [[np.array(group) for group in groups] for groups in self.blocks]
        return lay_in_blocks(groups, self.entries, device=CPU, at_end=self.at_end)

    def values(self) -> Tensor:
        """Return (entries, 2) numbers, no two the same and none zero."""
        return 1 + torch.arange(2 * self.entries, dtype=torch.float64).view(-1, 2)


@st.composite
def groupings(draw: st.DrawFn) -> Grouping:
    """Draw groups of any sizes, their entries in any order, over up to three blocks."""
    count = draw(st.integers(1, 12))
    group_of = draw(st.lists(st.integers(-1, 5), min_size=count, max_size=count))
    groups: dict[int, list[int]] = {}
    for entry in draw(st.permutations(range(count))):
        groups.setdefault(group_of[entry], []).append(entry)
    groups.pop(-1, None)  # these are in no group
    blocks: dict[int, list[Group]] = {}
    for group in groups.values() or [[0]]:
        blocks.setdefault(draw(st.integers(0, 2)), []).append(tuple(group))
    return Grouping(
        entries=count, blocks=tuple(map(tuple, blocks.values())), at_end=draw(st.booleans())
    )


@given(groupings())
def test_what_was_laid_is_collected_again_in_the_order_of_the_entries(grouping: Grouping) -> None:
    blocks, values = grouping.lay_out(), grouping.values()

    laid = blocks.lay(values)

    assert len(laid) == blocks.padded_entries == len(grouping.places)
    assert torch.equal(blocks.collect(laid), values[grouping.members])
    members = range(grouping.entries) if blocks.members is None else blocks.members.tolist()
    assert list(members) == grouping.members


@given(groupings())
def test_a_group_is_filled_up_with_its_own_first_entry(grouping: Grouping) -> None:
    blocks, values = grouping.lay_out(), grouping.values()

    split = blocks.split(blocks.lay(values))

    assert [tuple(block.shape) for block in split] == [
        (len(groups), max(map(len, groups)), 2) for groups in grouping.blocks
    ]
    expected = values[[entry for entry, _ in grouping.places]]
    assert torch.equal(torch.cat([block.flatten(0, 1) for block in split]), expected)


@given(groupings())
def test_fillers_and_nothing_else_have_no_gradient(grouping: Grouping) -> None:
    blocks, gradient = grouping.lay_out(), grouping.values()

    laid = blocks.lay_gradient(gradient)

    is_filler = torch.tensor([fills for _, fills in grouping.places])
    assert not laid[is_filler].any()
    assert torch.equal(laid[~is_filler], blocks.lay(gradient)[~is_filler])


@given(groupings())
def test_laying_and_collecting_are_each_others_gradients(grouping: Grouping) -> None:
    blocks, values = grouping.lay_out(), grouping.values().requires_grad_()
    members, places = grouping.members, grouping.places
    # Every place does something of its own, and every member counts differently in the end.
    factors = torch.linspace(1, 2, len(places), dtype=torch.float64)[:, None]
    weights = torch.zeros_like(values.detach())
    weights[members] = torch.linspace(3, 5, len(members), dtype=torch.float64)[:, None]

    place_of = {entry: place for place, (entry, fills) in enumerate(places) if not fills}
    # Autograd follows plain indexing, through the fillers too.
    laid = values[[entry for entry, _ in places]] * factors
    total = (laid[[place_of[entry] for entry in members]] * weights[members]).sum()
    (expected,) = torch.autograd.grad(total, values)
    gradient = blocks.collect(blocks.lay_gradient(weights) * factors)

    torch.testing.assert_close(gradient, expected[members])
    assert expected[members].all()


def test_a_group_that_is_not_a_number_stays_by_itself() -> None:
    blocks = Grouping(entries=4, blocks=(((0, 1, 2), (3,)),)).lay_out()

    laid = blocks.lay(torch.tensor([[torch.nan], [torch.nan], [torch.nan], [7.0]]))

    assert laid[3:].flatten().tolist() == [7, 7, 7]


def test_the_smallest_blocks_are_laid_by_hand() -> None:
    # Entry 2 is in no group; the second group of the first block has one entry to three.
    grouping = Grouping(entries=8, blocks=(((4, 0, 1), (5,)), ((3, 7), (6,))))
    blocks = grouping.lay_out()
    assert blocks.shapes == ((2, 3), (2, 2))
    assert blocks.padded_entries == 2 * 3 + 2 * 2
    assert blocks.lay(torch.arange(8)).tolist() == [4, 0, 1, 5, 5, 5, 3, 7, 6, 6]
    assert blocks.lay_gradient(torch.arange(8)).tolist() == [4, 0, 1, 5, 0, 0, 3, 7, 6, 0]
    assert blocks.collect(torch.arange(10)).tolist() == [1, 2, 6, 0, 3, 8, 7]
    at_end = Grouping(entries=8, blocks=grouping.blocks, at_end=True).lay_out()
    assert at_end.lay(torch.arange(8)).tolist() == [4, 0, 1, 5, 5, 5, 3, 7, 6, 6]
    assert at_end.lay_gradient(torch.arange(8)).tolist() == [4, 0, 1, 0, 0, 5, 3, 7, 0, 6]


@pytest.mark.parametrize("at_end", [False, True])
def test_where_entries_already_lie_in_blocks_nothing_moves(at_end: bool) -> None:
    grouping = Grouping(entries=5, blocks=(((0, 1, 2),), ((3,), (4,))), at_end=at_end)
    blocks, values = grouping.lay_out(), grouping.values()
    assert blocks.gather is blocks.places is blocks.members is blocks.fillers is None
    assert blocks.lay(values) is values
    assert blocks.lay_gradient(values) is values
    assert blocks.collect(values) is values
    first, second = blocks.split(values)
    assert first.data_ptr() == values.data_ptr()
    assert torch.equal(second, values[3:, None])


def test_entries_that_lie_in_blocks_but_for_one_in_none_do_move() -> None:
    blocks = Grouping(entries=3, blocks=(((0, 1),),)).lay_out()
    assert blocks.lay(torch.arange(3)).tolist() == [0, 1]
    assert blocks.collect(torch.arange(2)).tolist() == [0, 1]


@pytest.mark.parametrize("given_entries", [3, 5])
@pytest.mark.parametrize("groups", [((0, 1), (2, 3)), ((0, 1, 2), (3,))])
def test_another_number_of_entries_is_refused(
    groups: tuple[Group, ...], given_entries: int
) -> None:
    blocks = Grouping(entries=4, blocks=(groups,)).lay_out()
    message = f"rows: the pass has {given_entries} entries; it must have 4"
    with pytest.raises(ValueError, match=message):
        blocks.lay(torch.zeros(given_entries, 2))
    with pytest.raises(ValueError, match=message):
        blocks.lay_gradient(torch.zeros(given_entries, 2))
