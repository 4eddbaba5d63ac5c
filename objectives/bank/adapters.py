"""Holds the weights of all slots' adapters in one tensor and adds them to the base's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from data.recipes import TargetModules
from objectives.bank.modules import LinearModule
from objectives.bank.routing import Routing
from objectives.bank.seeds import derive_seed

# Takes a module's position in the layout; returns what its input is multiplied by.
Dropout = Callable[[int], Tensor]


class Layout:
    """Where each module's A and B lie in a tensor (slots, ranks, width).

    Row `j` of a slot holds row `j` of every module's A (in features) followed by column `j` of its
    B (out features), attention modules first. So the first `r` ranks of any target modules are one
    block, and clipping, Adam and saving see one tensor instead of two per module.
    """

    def __init__(self, modules: Sequence[LinearModule]) -> None:
        self.modules = tuple(modules)
        self._starts = [0]
        for module in modules:
            self._starts.append(self._starts[-1] + module.in_features + module.out_features)

    @property
    def width(self) -> int:
        """Return the number of weights per rank over all modules."""
        return self._starts[-1]

    def positions(self, targets: TargetModules) -> range:
        """Return the positions of the modules that `targets` names; they are neighbours."""
        chosen = [i for i, module in enumerate(self.modules) if module.is_target_of(targets)]
        return range(chosen[0], chosen[-1] + 1)

    def columns(self, positions: range) -> slice:
        """Return the columns of the modules at `positions`."""
        return slice(self._starts[positions.start], self._starts[positions.stop])

    def sizes(self, positions: range) -> list[int]:
        """Return the widths of A and B, alternating, of the modules at `positions`."""
        modules = self.modules[positions.start : positions.stop]
        return [size for module in modules for size in (module.in_features, module.out_features)]

    def split(self, weights: Tensor, positions: range) -> list[tuple[Tensor, Tensor]]:
        """Return each module's A (.., ranks, in) and transposed B (.., ranks, out) as views."""
        # One split for all, because its backward is a single concatenation.
        parts = weights.split_with_sizes(self.sizes(positions), dim=-1)
        return list(zip(parts[::2], parts[1::2], strict=True))


def initialise(layout: Layout, weights: Tensor, targets: TargetModules, *, seed: int) -> None:
    """Fill one slot's zero `weights` (rank, width) as PEFT does: A uniform, B zero.

    A follows `kaiming_uniform(a=sqrt(5))`, which is uniform in plus or minus 1/sqrt(in features).
    Each module draws from a generator of its own, so that the set of modules does not matter.
    """
    positions = layout.positions(targets)
    parts = layout.split(weights[:, layout.columns(positions)], positions)
    for position, (down, _) in zip(positions, parts, strict=True):
        module = layout.modules[position]
        generator = torch.Generator().manual_seed(derive_seed(seed, "initial A", module.name))
        bound = 1 / math.sqrt(module.in_features)
        down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterGroup:
    """Adapters padded to one rank, and the rows of a pass they are for.

    `weights` is (slots of the routing, ranks, columns of the modules they are attached to), fp32.
    `scales` (slots of the routing) is what each adapter's output is multiplied by.
    """

    weights: Tensor
    scales: Tensor
    routing: Routing
    dropout: Dropout | None = None


@contextmanager
def adapters_attached(
    layout: Layout, positions: range, groups: Sequence[AdapterGroup]
) -> Iterator[None]:
    """During it, forward passes of the base add the adapters' output to that of their modules.

    Args:
        layout: Names the modules and says where their weights are.
        positions: The modules that get adapters; all weights have just their columns.
        groups: The first group's rows come first in a pass, then the second's, and so on.
    """
    split = [layout.split(group.weights, positions) for group in groups]
    with ExitStack() as stack:
        for offset, position in enumerate(positions):
            shares = tuple(
                _Share(
                    down=parts[offset][0].transpose(1, 2),
                    up=parts[offset][1],
                    scales=group.scales.view(-1, 1, 1),
                    routing=group.routing,
                    dropout=None if group.dropout is None else partial(group.dropout, position),
                )
                for group, parts in zip(groups, split, strict=True)
            )
            module = layout.modules[position].module
            handle = module.register_forward_hook(partial(_add_adapters, shares=shares))
            stack.callback(handle.remove)
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """One group's adapters of one module: `down` (slots, in, ranks), `up` (slots, ranks, out)."""

    down: Tensor
    up: Tensor
    scales: Tensor
    routing: Routing
    dropout: Callable[[], Tensor] | None

    def add_to(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Return `output` (rows, time, out) plus each row's own adapter of the module's inputs.

        Computed in the adapters' fp32 and cast back at the end, as PEFT does.
        """
        slot_inputs = self.routing.to_slots(inputs.to(self.down.dtype))
        if self.dropout is not None:
            slot_inputs = slot_inputs * self.dropout()
        inner = torch.bmm(slot_inputs, self.down) * self.scales
        total = output.to(self.down.dtype)
        adapted, places = self.routing.adapted, self.routing.places
        if adapted is None or places is None:
            per_slot = total.reshape(len(inner), -1, output.shape[-1])
            return torch.baddbmm(per_slot, inner, self.up).view(output.shape).to(output.dtype)
        added = torch.bmm(inner, self.up).view(-1, *output.shape[1:]).index_select(0, places)
        return total.index_add(0, adapted, added).to(output.dtype)


def _add_adapters(
    _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, *, shares: tuple[_Share, ...]
) -> Tensor:
    if len(shares) == 1:
        return shares[0].add_to(output, inputs[0])
    rows = [share.routing.row_count for share in shares]
    pieces = zip(
        shares, output.split_with_sizes(rows), inputs[0].split_with_sizes(rows), strict=True
    )
    return torch.cat([share.add_to(*piece) for share, *piece in pieces])
