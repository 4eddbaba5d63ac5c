"""Attention within rows whose tokens lie end to end, for transformers' attention interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from objectives.models.passes.blocks import Blocks
from objectives.models.passes.short_rows import attend_in_short_rows, hide_unseen, suits_short_rows

PACKED_ATTENTION = "remember_packed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What attention needs to see rows in tokens that lie end to end.

    `keys` has each row's tokens, `queries` those of which it is the owner. Where rows share
    nothing both are the same and attention is causal. Otherwise all keys are in one block,
    `rows_of_block` lists the rows of every block of queries, and `masks` says which query sees
    which key, (rows of the block, 1, queries, keys).
    """

    keys: Blocks
    queries: Blocks
    rows_of_block: tuple[Tensor, ...] = ()
    masks: tuple[Tensor, ...] = ()

    def on(self, device: torch.device) -> Attention:
        """Return the same for tokens on another device."""
        keys = self.keys.on(device)
        return Attention(
            keys=keys,
            queries=keys if self.queries is self.keys else self.queries.on(device),
            rows_of_block=tuple(rows.to(device) for rows in self.rows_of_block),
            masks=tuple(mask.to(device) for mask in self.masks),
        )


class PassAttention:
    """What attention needs in one pass: where rows are, and the cache that gets their keys.

    What all layers of a device need is made once. The tensors of `attention` are on `device`.
    """

    def __init__(
        self, attention: Attention, cache: DynamicCache | None, device: torch.device
    ) -> None:
        self.attention = attention
        self.cache = cache
        self._on: dict[torch.device, PassAttention] = {device: self}
        self._per_head: dict[tuple[int, int], Blocks] = {}
        self._masks: dict[int | None, Sequence[Tensor | None]] = {}
        self._hidden: dict[int | None, list[Tensor]] = {}

    def on(self, device: torch.device) -> PassAttention:
        """Return what layers on a device need."""
        if device not in self._on:
            self._on[device] = PassAttention(self.attention.on(device), self.cache, device)
        return self._on[device]

    def per_head(self, blocks: Blocks, states: Tensor) -> Blocks:
        """Return how states (1, heads, ..) lie in blocks by head."""
        key = id(blocks), states.shape[1]
        if key not in self._per_head:
            self._per_head[key] = blocks.per_head(states.shape[1], states.device)
        return self._per_head[key]

    def masks(self, window: int | None, device: torch.device) -> Sequence[Tensor | None]:
        """Return which keys of a block each query sees within a window; None for all before it."""
        if window not in self._masks:
            sizes = [size for _, size in self.attention.keys.shapes]
            self._masks[window] = self.attention.masks or [
                _sliding_mask(window, size, device) for size in sizes
            ]
        return self._masks[window]

    def hidden(self, window: int | None, like: Tensor) -> list[Tensor]:
        """Return `hide_unseen` of every block of rows that share nothing."""
        if window not in self._hidden:
            masks = self.masks(window, like.device)
            self._hidden[window] = [
                hide_unseen(size, mask, like)
                for (_, size), mask in zip(self.attention.keys.shapes, masks, strict=True)
            ]
        return self._hidden[window]


class _Lay(torch.autograd.Function):
    """Blocks.lay with its gradient: nothing reads a filler, so it has none."""

    @staticmethod
    def forward(ctx: Any, entries: Tensor, blocks: Blocks) -> Tensor:
        ctx.blocks = blocks
        return blocks.lay(entries)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.blocks.collect(gradients[0]), None


class _Collect(torch.autograd.Function):
    """Blocks.collect with its gradient."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, blocks: Blocks) -> Tensor:
        ctx.blocks = blocks
        return blocks.collect(places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.blocks.lay_gradient(gradients[0]), None


def _attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_attention: PassAttention,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within rows; an attention function of transformers' interface.

    Args:
        module: The attention module.
        query: (1, heads, entries, features), as `key` and `value`, which may have fewer heads.
        key: What queries are compared with.
        value: What is averaged.
        attention_mask: None.
        packed_attention: Where the rows are.
        sliding_window: How many keys a query sees, itself included; all if None. Rows that share
            beginnings must not be longer.
        kwargs: What the model's own attention gets.
    """
    packed_attention = packed_attention.on(query.device)
    attention = packed_attention.attention
    shares_nothing = not attention.masks
    if shares_nothing and suits_short_rows(module, query, key, attention.keys, kwargs):
        attended = attend_in_short_rows(
            _rows_of_heads(query),
            _rows_of_heads(key),
            _rows_of_heads(value),
            packed_attention.per_head(attention.keys, query),
            packed_attention.hidden(sliding_window, query),
            kwargs["scaling"],
        )
        return attended.view(1, -1, query.shape[1], attended.shape[-1]), None
    masks = packed_attention.masks(sliding_window, query.device)
    query_blocks, key_blocks, value_blocks = (
        _lay(states, packed_attention.per_head(blocks, states))
        for states, blocks in (
            (query, attention.queries),
            (key, attention.keys),
            (value, attention.keys),
        )
    )
    if rows_of_block := attention.rows_of_block:
        (key_rows,), (value_rows,) = key_blocks, value_blocks
        if packed_attention.cache is not None:
            packed_attention.cache.update(key_rows, value_rows, module.layer_idx)
        key_blocks = [key_rows.index_select(0, rows) for rows in rows_of_block]
        value_blocks = [value_rows.index_select(0, rows) for rows in rows_of_block]
    outputs = [
        sdpa_attention_forward(module, *blocks, mask, **kwargs)[0]
        for *blocks, mask in zip(query_blocks, key_blocks, value_blocks, masks, strict=True)
    ]
    places = attention.queries.join(outputs)
    # Torch does not type what makes its functions of these classes, here and below.
    collected: Tensor = _Collect.apply(places, attention.queries)  # type: ignore[no-untyped-call]
    return collected[None], None


def _rows_of_heads(states: Tensor) -> Tensor:
    """Return (1, heads, entries, features) as (entries * heads, features)."""
    return states[0].transpose(0, 1).flatten(0, 1)


def _lay(states: Tensor, per_head: Blocks) -> list[Tensor]:
    """Return each block (rows, heads, entries, features) of states (1, heads, entries, ..)."""
    laid: Tensor = _Lay.apply(_rows_of_heads(states), per_head)  # type: ignore[no-untyped-call]
    return [block.view(-1, states.shape[1], *block.shape[1:]) for block in per_head.split(laid)]


def _sliding_mask(window: int | None, longest: int, device: torch.device) -> Tensor | None:
    """Return which keys (1, 1, queries, keys) a row of `longest` sees; None for all."""
    if window is None or longest <= window:
        return None
    ages = torch.arange(longest, device=device)[:, None] - torch.arange(longest, device=device)
    return ((ages >= 0) & (ages < window))[None, None]


AttentionInterface.register(PACKED_ATTENTION, _attend_packed)
