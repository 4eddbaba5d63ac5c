"""Moves entries between lying end to end, without padding, and lying side by side in blocks.

Most of a model treats every token alike and reads them end to end. Attention needs the tokens of a
row, and a batched product the tokens of a slot, in groups of one size; only there is anything
padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Entries = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How `entries` entries, each in one group or in none, lie in blocks of equally large groups.

    `shapes` has (groups, entries per group) of every block. All blocks end to end are the padded
    side: `gather` lists which entry stands at each of its places. A smaller group is filled with a
    copy of its own first entry, never another group's, whose NaN would spread; `fillers` lists the
    places of such copies. `places` says where each of `members`, the entries that are in a group,
    stands. `gather` and `places` are None where both sides are the same, `members` where every
    entry is one, `fillers` where there are none.
    """

    entries: int
    shapes: tuple[tuple[int, int], ...]
    gather: Tensor | None
    places: Tensor | None
    members: Tensor | None
    fillers: Tensor | None

    def on(self, device: torch.device) -> Blocks:
        """Return the same for entries on another device."""

        def moved(places: Tensor | None) -> Tensor | None:
            return None if places is None else places.to(device)

        return replace(
            self,
            gather=moved(self.gather),
            places=moved(self.places),
            members=moved(self.members),
            fillers=moved(self.fillers),
        )

    @property
    def padded_entries(self) -> int:
        """Return the number of places in all blocks."""
        return sum(groups * size for groups, size in self.shapes)

    def lay(self, entries: Tensor) -> Tensor:
        """Return (places, ..) from (entries, ..), fillers being copies.

        Raises:
            ValueError: If there are more or fewer entries than were announced.
        """
        if len(entries) != self.entries:
            raise ValueError(
                f"rows: the pass has {len(entries)} entries; it must have {self.entries}, one for "
                "every slot that was named"
            )
        return entries if self.gather is None else entries.index_select(0, self.gather)

    def lay_gradient(self, gradient: Tensor) -> Tensor:
        """Return `lay` of a gradient of every member: fillers, which nothing reads, have zero."""
        laid = self.lay(gradient)
        return laid if self.fillers is None else laid.index_fill(0, self.fillers, 0)

    def collect(self, places: Tensor) -> Tensor:
        """Return (members, ..) from (places, ..), the inverse of `lay`."""
        return places if self.places is None else places.index_select(0, self.places)

    def split(self, places: Tensor) -> list[Tensor]:
        """Return each block (groups, entries per group, ..) of (places, ..) as a view."""
        if len(self.shapes) == 1:
            return [places.view(*self.shapes[0], *places.shape[1:])]
        pieces = places.split_with_sizes([groups * size for groups, size in self.shapes])
        return [
            piece.view(*shape, *places.shape[1:])
            for piece, shape in zip(pieces, self.shapes, strict=True)
        ]

    @staticmethod
    def join(blocks: Sequence[Tensor]) -> Tensor:
        """Return (places, ..) from every block (groups, entries per group, ..)."""
        pieces = [block.flatten(0, 1) for block in blocks]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def per_head(self, heads: int, device: torch.device) -> Blocks:
        """Return how (entries * heads, ..) lies in blocks whose groups are of one head each.

        The groups of all heads of a group follow one another.
        """
        head = torch.arange(heads, device=device)
        moved_to = []
        start = 0
        for groups, size in self.shapes:
            places = torch.arange(groups * size * heads, device=device).view(groups, heads, size)
            moved_to.append(start + places.transpose(1, 2).flatten(0, 1))
            start += groups * size * heads
        places_of = torch.cat(moved_to)  # (places, heads)

        def numbered(entries: Tensor) -> Tensor:
            return (entries[:, None] * heads + head).flatten()

        def moved(places: Tensor) -> Tensor:
            return places_of.index_select(0, places).flatten()

        same = torch.arange(self.entries, device=device)
        gather = torch.empty_like(places_of).flatten()
        gather[places_of.flatten()] = numbered(same if self.gather is None else self.gather)
        return Blocks(
            entries=self.entries * heads,
            shapes=tuple((groups * heads, size) for groups, size in self.shapes),
            gather=gather,
            places=moved(same if self.places is None else self.places),
            members=None if self.members is None else numbered(self.members),
            fillers=None if self.fillers is None else moved(self.fillers),
        )


def lay_in_blocks(
    blocks: Sequence[Sequence[Entries]],
    entries: int,
    *,
    device: torch.device,
    at_end: bool = False,
) -> Blocks:
    """Return how entries lie in blocks.

    Args:
        blocks: For every block its groups, for every group its entries in order; none is empty.
            An entry in several groups can be laid out but not collected.
        entries: How many there are in all.
        device: Where they are.
        at_end: Put a smaller group's own entries last among its places instead of first.
    """
    shapes = tuple((len(groups), max(map(len, groups))) for groups in blocks)
    end_to_end = np.concatenate([group for groups in blocks for group in groups])
    if (
        len(end_to_end) == entries == sum(groups * size for groups, size in shapes)
        and (end_to_end == np.arange(entries)).all()
    ):
        return Blocks(
            entries=entries, shapes=shapes, gather=None, places=None, members=None, fillers=None
        )
    gathered: list[Entries] = []
    is_filler: list[NDArray[np.bool_]] = []
    for groups in blocks:
        size = max(map(len, groups))
        for group in groups:
            filling = np.repeat(group[:1], size - len(group))
            filled = np.repeat(True, len(filling)), np.repeat(False, len(group))
            gathered.append(np.concatenate([filling, group] if at_end else [group, filling]))
            is_filler.append(np.concatenate(filled if at_end else filled[::-1]))
    gather, fills = np.concatenate(gathered), np.concatenate(is_filler)
    own = np.flatnonzero(~fills)
    order = np.argsort(gather[own], kind="stable")
    members, places = gather[own][order], own[order]

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Blocks(
        entries=entries,
        shapes=shapes,
        gather=tensor(gather),
        places=tensor(places),
        members=None if len(members) == entries else tensor(members),
        fillers=tensor(np.flatnonzero(fills)) if fills.any() else None,
    )


def cut_where_it_pays(sizes: Sequence[int], *, least_saving: float) -> list[range]:
    """Return the places of groups in runs, in each of which all are padded to the first.

    Args:
        sizes: Of each group; largest first. None is no runs.
        least_saving: How much padding a further run must save.
    """
    runs: list[range] = []
    rest = np.asarray(sizes)
    while len(rest):
        start = len(sizes) - len(rest)
        saved = np.arange(len(rest), 0, -1) * (rest[0] - rest)
        cut = int(saved.argmax())
        if saved[cut] < least_saving or cut == 0:
            return [*runs, range(start, len(sizes))]
        runs.append(range(start, start + cut))
        rest = rest[cut:]
    return runs
