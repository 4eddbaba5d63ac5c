"""Lays rows of token ids out for one pass of a model: end to end, or padded where it must be.

End to end ("packed") nothing is padded but inside attention, and a beginning that rows share is
read once. It works for models that leave attention to transformers' attention interface and mix
tokens nowhere else, which is tried out on the model itself; all others read padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from objectives.models.base import BaseModel, cache_argument, input_device
from objectives.models.passes.blocks import Entries, cut_where_it_pays, lay_in_blocks
from objectives.models.passes.packed_attention import PACKED_ATTENTION, Attention, PassAttention

# Rows of a block of attention are padded to its longest. Shorter ones get a block of their own
# where that saves at least so many pairs of query and key: padding costs pairs, a block kernels.
_PAIRS_WORTH_A_BLOCK = 8192

_Token = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of token ids as one pass reads them.

    `token_ids` is (1, entries) where they lie end to end and (rows, longest) where they are
    padded; `positions` are counted from 0 in every row. Entries are counted in that order, and
    `entries_of` lists each row's. `owners` has the row of every entry, a padding entry's too;
    where rows share a beginning it is the first of them. `attention` is None for padded rows;
    `mask` is 1 where a row that is padded on the left has a token.
    """

    token_ids: Tensor
    positions: Tensor
    entries_of: tuple[Entries, ...]
    owners: Entries
    attention: Attention | None = None
    mask: Tensor | None = None

    @property
    def entries(self) -> int:
        """Return how many tokens the pass computes."""
        return len(self.owners)


def lay_out_rows(base: BaseModel, rows: Sequence[_Token]) -> Rows:
    """Return rows for a pass without a cache, in which gradients may flow."""
    if not reads_packed(base.model):
        return _pad_right(rows, base.pad_id, base.device)
    return _pack(rows, base.device)


def share_beginnings(base: BaseModel, rows: Sequence[_Token], readers: Sequence[int]) -> Rows:
    """Return rows for a pass without gradients in which shared beginnings are read once.

    A row shares what it has in common with the row before it, if the same reader (slot) reads
    both; so equal beginnings should be neighbours. The model must read packed rows. For a
    key/value cache the keys lie in one block, each row's last token last.
    """
    entries_of: list[Entries] = []
    own: list[Entries] = []
    token_ids: list[int] = []
    positions: list[int] = []
    for number, row in enumerate(rows):
        shared = 0
        if number and readers[number] == readers[number - 1]:
            # At least its last token is the row's own.
            shared = min(_count_common(row, rows[number - 1]), len(row) - 1)
        mine = np.arange(len(token_ids), len(token_ids) + len(row) - shared)
        own.append(mine)
        before = entries_of[-1][:shared] if shared else mine[:0]
        entries_of.append(np.concatenate([before, mine]))
        token_ids += row[shared:]
        positions += range(shared, len(row))
    entries, device = len(token_ids), base.device
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    most_own_first = sorted(range(len(rows)), key=lambda row: len(own[row]), reverse=True)
    blocks = [
        [most_own_first[place] for place in block]
        for block in cut_where_it_pays(
            [len(own[row]) * longest for row in most_own_first], least_saving=_PAIRS_WORTH_A_BLOCK
        )
    ]
    queries = lay_in_blocks(
        [[own[row] for row in block] for block in blocks], entries, device=device, at_end=True
    )
    return Rows(
        token_ids=torch.tensor([token_ids], device=device),
        positions=torch.tensor([positions], device=device),
        entries_of=tuple(entries_of),
        owners=np.repeat(np.arange(len(rows)), [len(mine) for mine in own]),
        attention=Attention(
            keys=lay_in_blocks([entries_of], entries, device=device, at_end=True),
            queries=queries,
            rows_of_block=tuple(torch.tensor(block, device=device) for block in blocks),
            masks=tuple(
                _mask_ending_together(lengths[block], longest, query_count, device)
                for block, (_, query_count) in zip(blocks, queries.shapes, strict=True)
            ),
        ),
    )


def pad_left(base: BaseModel, rows: Sequence[_Token]) -> Rows:
    """Return rows padded so that every row's next token comes last, as a cache needs them."""
    width = max(map(len, rows))
    ids = torch.tensor([[base.pad_id] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([[len(row)] for row in rows])
    positions = torch.arange(width) - (width - lengths)
    return Rows(
        token_ids=ids.to(base.device),
        positions=positions.clamp(min=0).to(base.device),
        entries_of=tuple(
            np.arange((number + 1) * width - len(row), (number + 1) * width)
            for number, row in enumerate(rows)
        ),
        owners=np.repeat(np.arange(len(rows)), width),
        mask=(positions >= 0).long().to(base.device),
    )


@contextmanager
def attending(
    model: PreTrainedModel, rows: Rows, cache: DynamicCache | None = None
) -> Iterator[dict[str, Any]]:
    """During it the model reads `rows`; yields the arguments of its call.

    An empty `cache` gets the rows' keys and values, padded on the left to the longest row; the
    rows must be, too, or share their beginnings.
    """
    inputs: dict[str, Any] = {"input_ids": rows.token_ids, "use_cache": False}
    if rows.attention is None:
        if cache is not None:
            inputs |= {cache_argument(model): cache, "use_cache": True}
        if rows.mask is not None:
            inputs |= {"attention_mask": rows.mask, "position_ids": rows.positions}
        # Padded on the right they need no mask, and causal attention takes its fast path: real
        # tokens come before the padding of their row and never see it.
        yield inputs
        return
    before = model.config._attn_implementation
    model.config._attn_implementation = PACKED_ATTENTION
    try:
        yield {
            **inputs,
            "position_ids": rows.positions,
            "packed_attention": PassAttention(rows.attention, cache, rows.token_ids.device),
        }
    finally:
        model.config._attn_implementation = before


@contextmanager
def logits_only_of(model: PreTrainedModel, entries: Tensor) -> Iterator[None]:
    """During it the model computes logits (len(entries), vocabulary) of these entries only."""

    def select(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        # On several devices the last layer, and so the head's input, may be on another one.
        states = inputs[0].flatten(0, 1)
        return (states.index_select(0, entries.to(states.device)),)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def reads_packed(model: PreTrainedModel) -> bool:
    """Return whether a model gives rows that lie end to end the logits it gives each alone.

    Models with recurrent or convolutional layers, or with attention code of their own, do not.
    Tried out once per model.
    """
    if model not in _reads_packed:
        _reads_packed[model] = _try_packed(model)
    return _reads_packed[model]


_reads_packed: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _try_packed(model: PreTrainedModel) -> bool:
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return False
    vocabulary = int(model.config.get_text_config().vocab_size)
    numbers = [number % vocabulary for number in range(3, 3 + 7 * 12, 7)]
    short, long = tuple(numbers[:5]), tuple(numbers[5:])
    device = input_device(model)
    packed = _pack([short, long], device)
    with attending(model, packed) as inputs:
        try:
            together = model(**inputs).logits[0].float()
        except (TypeError, ValueError, RuntimeError, KeyError):
            return False
    alone = torch.cat(
        [
            model(torch.tensor([row], device=device), use_cache=False).logits[0].float()
            for row in (short, long)
        ]
    )
    # What another row's tokens add is of the size of the logits; rounding is far below.
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    return bool((together - alone).abs().max() <= tolerance * alone.abs().max())


def _pack(rows: Sequence[_Token], device: torch.device) -> Rows:
    lengths = [len(row) for row in rows]
    ends = np.cumsum(lengths)
    entries_of = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    longest_first = sorted(entries_of, key=len, reverse=True)
    blocks = [
        [longest_first[place] for place in block]
        for block in cut_where_it_pays(
            [len(entries) ** 2 for entries in longest_first], least_saving=_PAIRS_WORTH_A_BLOCK
        )
    ]
    laid = lay_in_blocks(blocks, int(ends[-1]), device=device)
    return Rows(
        token_ids=torch.tensor([[token for row in rows for token in row]], device=device),
        positions=torch.tensor(np.concatenate([np.arange(n) for n in lengths]), device=device)[
            None
        ],
        entries_of=tuple(entries_of),
        owners=np.repeat(np.arange(len(rows)), lengths),
        attention=Attention(keys=laid, queries=laid),
    )


def _pad_right(rows: Sequence[_Token], pad_id: int, device: torch.device) -> Rows:
    width = max(map(len, rows))
    ids = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    return Rows(
        token_ids=torch.tensor(ids, device=device),
        positions=torch.arange(width, device=device).expand(len(rows), width),
        entries_of=tuple(
            np.arange(number * width, number * width + len(row)) for number, row in enumerate(rows)
        ),
        owners=np.repeat(np.arange(len(rows)), width),
    )


def _count_common(one: _Token, other: _Token) -> int:
    for count, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return count
    return min(len(one), len(other))


def _mask_ending_together(
    lengths: Entries, key_count: int, query_count: int, device: torch.device
) -> Tensor:
    """Return which keys (rows, 1, queries, keys) each query sees; each row's last stand last."""
    columns = torch.arange(key_count, device=device)
    latest = torch.arange(key_count - query_count, key_count, device=device)
    first = key_count - torch.from_numpy(lengths).to(device)
    seen: Tensor = (columns <= latest[:, None]) & (columns >= first[:, None, None])
    return seen[:, None]
