"""Causal attention within short rows, by batched products.

On a CPU that takes about six tenths of the time of the kernel of PyTorch's own attention, which is
made for long rows (measured with rows of 30 tokens, forward and backward).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from objectives.models.passes.blocks import Blocks

# Longer rows take as long, and their products would take much memory.
_LONGEST_TOKENS = 128

# What a model tells its attention that is allowed for here.
_UNDERSTOOD = {"scaling", "dropout", "position_ids", "use_cache"}


def suits_short_rows(
    module: nn.Module, query: Tensor, key: Tensor, blocks: Blocks, arguments: Mapping[str, Any]
) -> bool:
    """Return whether `attend_in_short_rows` computes a module's attention, and pays.

    Args:
        module: The attention module.
        query: (1, heads, entries, features), as `key`.
        key: What queries are compared with.
        blocks: Where the rows are.
        arguments: What the module passes on to attention.
    """
    given = {name for name, value in arguments.items() if value is not None}
    return (
        query.device.type == "cpu"
        and query.dtype == torch.float32
        and query.shape[1] == key.shape[1]
        and max(size for _, size in blocks.shapes) <= _LONGEST_TOKENS
        and given <= _UNDERSTOOD
        and "scaling" in given
        and not arguments.get("dropout")
        and getattr(module, "is_causal", True)
    )


def attend_in_short_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Blocks,
    hidden: Sequence[Tensor],
    scaling: float,
) -> Tensor:
    """Return the attention (entries, features) of each entry to those it sees in its group.

    Args:
        query: (entries, features), as `key` and `value`. An entry is a token of one head.
        key: What queries are compared with.
        value: What is averaged.
        blocks: Each group is a row of one head.
        hidden: What each block hides, by `hide_unseen`.
        scaling: What products are multiplied by.
    """
    # Torch does not type what makes its function of the class.
    attended: Tensor = _AttendInRows.apply(  # type: ignore[no-untyped-call]
        query, key, value, blocks, hidden, scaling
    )
    return attended


def hide_unseen(size: int, mask: Tensor | None, like: Tensor) -> Tensor:
    """Return (1, queries, keys): zero where a key is seen, minus infinity where it is not.

    Args:
        size: The entries of a group.
        mask: Which keys (.., queries, keys) each query sees; None for all that come before it.
        like: A tensor of the same dtype and device.
    """
    seen = torch.ones(size, size, dtype=torch.bool).tril() if mask is None else mask.view(size, -1)
    return like.new_zeros(1, size, size).masked_fill_(~seen, float("-inf"))


class _AttendInRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Blocks,
        hidden: Sequence[Tensor],
        scaling: float,
    ) -> Tensor:
        laid = [blocks.lay(states) for states in (query, key, value)]
        saved: list[Tensor] = []
        attended = []
        for queries, keys, values, hide in zip(*map(blocks.split, laid), hidden, strict=True):
            scores = torch.baddbmm(hide, queries, keys.transpose(1, 2), alpha=scaling)
            shares = torch.softmax(scores, dim=-1)
            attended.append(torch.bmm(shares, values))
            saved += queries, keys, values, shares
        ctx.save_for_backward(*saved)
        ctx.blocks, ctx.scaling = blocks, scaling
        return blocks.collect(blocks.join(attended))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        blocks: Blocks = ctx.blocks
        saved = ctx.saved_tensors
        to_query, to_key, to_value = [], [], []
        for number, gradient in enumerate(blocks.split(blocks.lay_gradient(gradients[0]))):
            queries, keys, values, shares = saved[4 * number : 4 * number + 4]
            to_value.append(torch.bmm(shares.transpose(1, 2), gradient))
            to_scores = torch._softmax_backward_data(
                torch.bmm(gradient, values.transpose(1, 2)), shares, -1, shares.dtype
            ).mul_(ctx.scaling)
            to_query.append(torch.bmm(to_scores, keys))
            to_key.append(torch.bmm(to_scores.transpose(1, 2), queries))
        return (
            *(blocks.collect(blocks.join(each)) for each in (to_query, to_key, to_value)),
            None,
            None,
            None,
        )
