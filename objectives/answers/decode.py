"""Decodes many rows token by token in batches, each row as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from data.recipes import Sampling
from objectives.answers.batches import batch_rows, pad_left
from objectives.answers.endings import Endings
from objectives.answers.request import AdapterRouter
from objectives.answers.sampling import TokenChooser
from objectives.models.base import BaseModel

# The share of finished rows at which they are dropped: what is saved then outweighs copying the
# keys and values of the rows that stay.
_DROPPED_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a row has when decoding begins: its prompt and the tokens already generated after it.

    `uniforms` has a number in [0, 1) for every token the row may generate; it is empty where
    nothing is drawn.
    """

    prompt_ids: tuple[int, ...]
    slot: int
    sampling: Sampling
    uniforms: NDArray[np.float64]
    generated: tuple[int, ...] = ()

    @property
    def read_ids(self) -> tuple[int, ...]:
        """Return all that the model reads before it chooses the next token."""
        return self.prompt_ids + self.generated


def decode(
    base: BaseModel,
    openings: Sequence[Opening],
    *,
    router: AdapterRouter,
    endings: Endings,
    rows_per_batch: int,
    on_rows_done: Callable[[Sequence[int]], None],
) -> list[tuple[int, ...]]:
    """Return the generated token ids of every row, with those it began with and an EOS at the end.

    Rows never influence each other beyond the rounding of floating point numbers. Rows must not be
    over already. `on_rows_done` is called with the numbers of the rows of every finished batch.
    """
    generated: list[tuple[int, ...]] = [()] * len(openings)
    read_ids = [opening.read_ids for opening in openings]
    slots = [opening.slot for opening in openings]
    for batch in batch_rows(read_ids, slots, rows_per_batch):
        rows = [openings[row] for row in batch]
        for row, token_ids in zip(batch, _decode_batch(base, rows, router, endings), strict=True):
            generated[row] = token_ids
        on_rows_done(batch)
    return generated


@torch.inference_mode()
def _decode_batch(
    base: BaseModel, openings: Sequence[Opening], router: AdapterRouter, endings: Endings
) -> list[tuple[int, ...]]:
    batch = _Batch(base, openings, endings)
    batch.read_openings(router)
    while batch.unfinished:
        batch.drop_finished()
        with router.answering(batch.slots):
            while batch.unfinished > len(batch.slots) * (1 - _DROPPED_SHARE):
                batch.read_tokens()
    return [tuple(token_ids) for token_ids in batch.generated]


class _Batch:
    """Rows on their way: what the model has read of them, and what they have generated.

    Tensors have a row for each of `_reading`, the numbers of the openings that the model reads on.
    A finished row stays among them, reading tokens that nobody uses, until it is dropped.
    """

    _mask: Tensor  # (rows, tokens), 1 where the row has a token
    _positions: Tensor  # (rows, 1), of the token read last among the row's own
    _history: Tensor  # (rows, tokens), what was read, without padding
    _tokens: Tensor  # (rows, 1), chosen and not read yet

    def __init__(self, base: BaseModel, openings: Sequence[Opening], endings: Endings) -> None:
        self._base = base
        self._openings = openings
        self._endings = endings
        self.generated = [list(opening.generated) for opening in openings]
        self._is_over = [False] * len(openings)
        self._uniforms = _stack_uniforms(openings)
        self._reading = list(range(len(openings)))
        self._chooser = TokenChooser([row.sampling for row in openings], base.device)
        self._cache = DynamicCache(config=base.model.config)

    @property
    def slots(self) -> list[int]:
        """Return the slot of every row that the model reads."""
        return [self._openings[row].slot for row in self._reading]

    @property
    def unfinished(self) -> int:
        """Return how many rows are not over."""
        return self._is_over.count(False)

    def read_openings(self, router: AdapterRouter) -> None:
        """Read what the rows begin with, and choose a token for each.

        Rows of one slot that begin alike, as under several samplings, are read once.
        """
        begins = [(opening.slot, opening.read_ids) for opening in self._openings]
        distinct = {begin: place for place, begin in enumerate(dict.fromkeys(begins))}
        padded = pad_left([read_ids for _, read_ids in distinct], self._base)
        with router.answering([slot for slot, _ in distinct]):
            logits = self._forward(padded.ids, padded.mask, padded.positions)

        self._mask = padded.mask
        self._positions = padded.positions[:, -1:]
        # Padding is no history, so each row repeats a token of its own there.
        self._history = padded.ids.where(padded.mask.bool(), padded.ids[:, -1:])
        if len(distinct) < len(begins):
            places = torch.tensor([distinct[begin] for begin in begins], device=self._base.device)
            self._select(places)
            logits = logits[places]
        self._choose(logits)

    def read_tokens(self) -> None:
        """Read the tokens chosen last, and choose the next ones."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._tokens)], dim=1)
        self._history = torch.cat([self._history, self._tokens], dim=1)
        # A finished row may run past the last position that the model knows.
        self._positions = (self._positions + 1).clamp(max=self._base.context_tokens - 1)
        self._choose(self._forward(self._tokens, self._mask, self._positions))

    def drop_finished(self) -> None:
        """Let the model read only rows that are not over."""
        kept = [place for place, row in enumerate(self._reading) if not self._is_over[row]]
        if len(kept) == len(self._reading):
            return
        self._reading = [self._reading[place] for place in kept]
        self._chooser = TokenChooser(
            [self._openings[row].sampling for row in self._reading], self._base.device
        )
        places = torch.tensor(kept, device=self._base.device)
        self._select(places)
        self._tokens = self._tokens[places]

    def _select(self, places: Tensor) -> None:
        self._cache.batch_select_indices(places)
        self._mask = self._mask[places]
        self._positions = self._positions[places]
        self._history = self._history[places]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self._base.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _choose(self, logits: Tensor) -> None:
        # A finished row may have used up its numbers; what it draws is not used.
        last = self._uniforms.shape[1] - 1
        steps = [min(len(self.generated[row]), last) for row in self._reading]
        uniforms = torch.from_numpy(self._uniforms[self._reading, steps]).to(self._base.device)
        tokens = self._chooser.choose(logits, self._history, uniforms)
        self._tokens = tokens[:, None]
        for row, token in zip(self._reading, tokens.tolist(), strict=True):
            if not self._is_over[row]:
                self.generated[row].append(token)
                self._is_over[row] = self._endings.is_over(
                    self.generated[row], self._openings[row].sampling.max_new_tokens
                )


def _stack_uniforms(openings: Sequence[Opening]) -> NDArray[np.float32]:
    """Return the rows' numbers side by side (rows, steps), 0 where a row has none."""
    steps = max(opening.sampling.max_new_tokens for opening in openings)
    stacked = np.zeros((len(openings), steps), dtype=np.float32)
    for numbers, opening in zip(stacked, openings, strict=True):
        numbers[: len(opening.uniforms)] = opening.uniforms
    return stacked
