"""Holds the weights of all slots' adapters in one tensor and adds them to the base's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data.recipes import TargetModules
from objectives.bank.seeds import derive_seed
from objectives.models.linear_modules import LinearModule
from objectives.models.passes.blocks import Blocks

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
        """Return the positions of the modules that `targets` names; they are neighbours.

        Raises:
            ValueError: If there is none.
        """
        chosen = [i for i, module in enumerate(self.modules) if module.is_target_of(targets)]
        if not chosen:
            there = ", ".join(sorted({module.suffix for module in self.modules}))
            raise ValueError(
                f"target_modules: {targets!r} is not allowed; the model has no such module, only "
                f"{there}"
            )
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
    """Fill the zero `weights` (rank, columns of the targets) as PEFT does: A uniform, B zero.

    A follows `kaiming_uniform(a=sqrt(5))`, which is uniform in plus or minus 1/sqrt(in features).
    Each module draws from a generator of its own, so that the set of modules does not matter.
    """
    positions = layout.positions(targets)
    parts = layout.split(weights, positions)
    for position, (down, _) in zip(positions, parts, strict=True):
        module = layout.modules[position]
        generator = torch.Generator().manual_seed(derive_seed(seed, "initial A", module.name))
        bound = 1 / math.sqrt(module.in_features)
        down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterGroup:
    """Adapters of one padded rank, which serve one block of a pass.

    `weights` is (slots, ranks, columns of the modules they are attached to), fp32, and `scales`
    (slots) is what each adapter's output is multiplied by. A backward pass writes the weights'
    gradient to `gradients`, of the same shape; None where there will be no backward pass.
    """

    weights: Tensor
    scales: Tensor
    gradients: Tensor | None = None
    dropout: Dropout | None = None


@contextmanager
def adapters_attached(
    layout: Layout, positions: range, groups: Sequence[AdapterGroup], blocks: Blocks
) -> Iterator[None]:
    """During it, forward passes of the base add the adapters' output to that of their modules.

    Args:
        layout: Names the modules and says where their weights are.
        positions: The modules that get adapters; all weights have just their columns.
        groups: The adapters of each block.
        blocks: A pass's tokens: each block's groups are the tokens of that block's slots.
    """
    weights = [layout.split(group.weights, positions) for group in groups]
    gradients = [
        None
        if group.gradients is None
        else [_Gradients(*parts) for parts in layout.split(group.gradients, positions)]
        for group in groups
    ]
    laid = _LaidInputs(blocks)
    handles = []
    try:
        for offset, position in enumerate(positions):
            adapters = tuple(
                _Adapters(
                    down=own_weights[offset][0],
                    up=own_weights[offset][1],
                    scales=group.scales.view(-1, 1, 1),
                    gradients=None if own_gradients is None else own_gradients[offset],
                    dropout=None if group.dropout is None else partial(group.dropout, position),
                )
                for group, own_weights, own_gradients in zip(
                    groups, weights, gradients, strict=True
                )
            )
            module = layout.modules[position].module
            handles.append(module.register_forward_hook(_Attached(adapters, laid)))
        yield
    finally:
        for handle in handles:
            handle.remove()
    for own_gradients in gradients:
        for gradient in own_gradients or ():
            gradient.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapters:
    """One group's adapters of one module: `down` (slots, ranks, in), `up` (slots, ranks, out)."""

    down: Tensor
    up: Tensor
    scales: Tensor
    gradients: _Gradients | None
    dropout: Callable[[], Tensor] | None

    def on(self, device: torch.device) -> _Adapters:
        """Return the same for a module on another device; gradients stay where they go."""
        dropout = self.dropout
        return replace(
            self,
            down=self.down.to(device),
            up=self.up.to(device),
            scales=self.scales.to(device),
            # Drawn where all others are: the draws of a device's generator are its own.
            dropout=None if dropout is None else lambda: dropout().to(device),
        )


class _Gradients:
    """Where the gradients of a module's `down` and `up` go; what is there at first is not read."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self._parts = down, up
        self._written = False

    def add(self, down: Tensor, up: Tensor) -> None:
        """Add the gradients of one use of the module; most have one in a pass."""
        for part, gradient in zip(self._parts, (down, up), strict=True):
            if self._written:
                part.add_(gradient.to(part.device))
            else:
                part.copy_(gradient)
        self._written = True

    def finish(self) -> None:
        """Make them zero if the module was not used."""
        if not self._written:
            for part in self._parts:
                part.zero_()


class _LaidInputs:
    """Inputs of modules in blocks; those of the module before are kept, for neighbours share them.

    Query, key and value read the same tensor, and so do the two halves of an MLP.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._blocks_on: dict[torch.device, Blocks] = {}
        # It makes autograd record even where nothing that it knows needs a gradient.
        self.anchor = torch.empty(0, requires_grad=True)
        self._last: tuple[Tensor, list[Tensor]] | None = None

    def blocks(self, device: torch.device) -> Blocks:
        """Return where the tokens of inputs on a device are."""
        if device not in self._blocks_on:
            self._blocks_on[device] = self._blocks.on(device)
        return self._blocks_on[device]

    def of(self, inputs: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Return each block (slots, tokens, in) of inputs (.., in)."""
        if self._last is None or self._last[0] is not inputs:
            blocks = self.blocks(inputs.device)
            laid = blocks.lay(_entries(inputs.detach(), dtype))
            self._last = inputs, blocks.split(laid)
        return self._last[1]


class _Attached:
    """The forward hook of one module, which adds its adapters' output to its own.

    Where the module computes on another device than the adapters are held on, they are moved to it
    when it is first used.
    """

    def __init__(self, adapters: tuple[_Adapters, ...], laid: _LaidInputs) -> None:
        self._adapters = adapters
        self._laid = laid

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if output.device != self._adapters[0].down.device:
            self._adapters = tuple(own.on(output.device) for own in self._adapters)
        adapters, laid = self._adapters, self._laid
        read = laid.of(inputs[0], adapters[0].down.dtype)
        blocks = laid.blocks(output.device)
        if adapters[0].gradients is None:
            return _add_forward(output, read, adapters, blocks)[0]
        # The weights are no inputs of the graph: their gradient is written where the optimizer
        # reads it. Torch does not type what makes its function of the class.
        added: Tensor = _AddAdapters.apply(  # type: ignore[no-untyped-call]
            output, inputs[0], laid.anchor, read, adapters, blocks
        )
        return added


def _add_forward(
    output: Tensor, inputs: Sequence[Tensor], adapters: Sequence[_Adapters], blocks: Blocks
) -> tuple[Tensor, list[Tensor]]:
    """Return `output` (.., out) plus the adapters' output, and what their upper halves read.

    Computed in the adapters' fp32 and cast back at the end, as PEFT does.
    """
    inner = [
        torch.bmm(block, own.down.transpose(1, 2)).mul_(own.scales)
        for block, own in zip(inputs, adapters, strict=True)
    ]
    total = _entries(output, inner[0].dtype)
    if blocks.gather is None and len(adapters) == 1:
        total = torch.baddbmm(blocks.split(total)[0], inner[0], adapters[0].up)
    else:
        padded = inner[0].new_empty(blocks.padded_entries, total.shape[1])
        for place, part, own in zip(blocks.split(padded), inner, adapters, strict=True):
            torch.bmm(part, own.up, out=place)
        added = blocks.collect(padded)
        members = blocks.members
        total = added.add_(total) if members is None else total.index_add(0, members, added)
    # Not a view to autograd, which lets no function's view be added to in place, as Falcon does.
    shaped: Tensor = torch.ops.aten._unsafe_view(total, output.shape)
    return shaped.to(output.dtype), inner


def _entries(states: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (.., features) as (entries, features) of a dtype."""
    entries = states.flatten(0, -2)
    return entries if entries.dtype == dtype else entries.to(dtype)


class _AddAdapters(torch.autograd.Function):
    """Adds adapters to a module's output; backward writes the gradients of their weights."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        inputs: Tensor,
        _anchor: Tensor,
        laid: list[Tensor],
        adapters: tuple[_Adapters, ...],
        blocks: Blocks,
    ) -> Tensor:
        masks = [None if own.dropout is None else own.dropout() for own in adapters]
        read = [
            block if mask is None else block * mask
            for block, mask in zip(laid, masks, strict=True)
        ]
        total, inner = _add_forward(output, read, adapters, blocks)
        # Saved in this way, they are freed and computed again under gradient checkpointing.
        ctx.save_for_backward(*read, *inner, *masks)
        ctx.adapters, ctx.blocks = adapters, blocks
        ctx.input_shape, ctx.input_dtype = inputs.shape, inputs.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        blocks: Blocks = ctx.blocks
        adapters: tuple[_Adapters, ...] = ctx.adapters
        count = len(adapters)
        saved = ctx.saved_tensors
        reads, inners, masks = saved[:count], saved[count : 2 * count], saved[2 * count :]
        outers = blocks.split(blocks.lay_gradient(_entries(gradient, inners[0].dtype)))
        needs_input = ctx.needs_input_grad[1]
        padded = reads[0].new_empty(blocks.padded_entries * needs_input, reads[0].shape[-1])
        places = blocks.split(padded) if needs_input else [None] * count
        for outer, read, inner, mask, own, to_read in zip(
            outers, reads, inners, masks, adapters, places, strict=True
        ):
            to_inner = torch.bmm(outer, own.up.transpose(1, 2)).mul_(own.scales)
            assert own.gradients is not None
            own.gradients.add(
                torch.bmm(to_inner.transpose(1, 2), read), torch.bmm(inner.transpose(1, 2), outer)
            )
            if to_read is not None:
                torch.bmm(to_inner, own.down, out=to_read)
                if mask is not None:
                    to_read.mul_(mask)
        if not needs_input:
            return gradient, None, None, None, None, None
        to_input = blocks.collect(padded).view(ctx.input_shape).to(ctx.input_dtype)
        return gradient, to_input, None, None, None, None
