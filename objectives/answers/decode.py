"""Decodes many rows token by token in batches, each row as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import eq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from data.recipes import Sampling
from objectives.answers.batches import batch_rows, pad_left
from objectives.answers.endings import Endings
from objectives.answers.request import AdapterRouter
from objectives.answers.sampling import TokenChooser
from objectives.models.base import BaseModel

# The share of finished rows at which they are dropped: what is saved then outweighs copying the
# keys and values of the rows that stay.
_DROPPED_SHARE = 0.25

# The most logits of one forward pass: 1 GiB in fp32. Reading a draft needs those of every token,
# and a large vocabulary makes them the largest tensor of all.
_LOGITS_PER_PASS = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What decoding a row begins with.

    `uniforms` has a number in [0, 1) for every token the row may generate; it is empty where
    nothing is drawn. `draft` is a guess of what will be generated, for rows that take the
    likeliest token without a repetition penalty: the model reads it together with the prompt and
    keeps what it would have said itself. A guess changes the work, never the result, as long as no
    beginning of it is over (greedy speculative decoding: Stern et al. 2018, 1811.03115).
    """

    prompt_ids: tuple[int, ...]
    slot: int
    sampling: Sampling
    uniforms: NDArray[np.float64]
    draft: tuple[int, ...] = ()

    @property
    def read_ids(self) -> tuple[int, ...]:
        """Return what the model reads first."""
        return self.prompt_ids + self.draft


def decode(
    base: BaseModel,
    openings: Sequence[Opening],
    *,
    router: AdapterRouter,
    endings: Endings,
    rows_per_batch: int,
    on_rows_done: Callable[[Sequence[int]], None],
) -> list[tuple[int, ...]]:
    """Return the generated token ids of every row, with the EOS where one was generated.

    Rows never influence each other beyond the rounding of floating point numbers. `on_rows_done`
    is called with the numbers of the rows of every finished batch.
    """
    if not _can_unread(base):
        openings = [replace(opening, draft=()) for opening in openings]
    generated: list[tuple[int, ...]] = [()] * len(openings)
    read_ids = [opening.read_ids for opening in openings]
    slots = [opening.slot for opening in openings]
    longest_draft = max((len(opening.draft) for opening in openings), default=0)
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    rows_within_memory = max(1, _LOGITS_PER_PASS // (vocabulary * (longest_draft + 1)))
    for batch in batch_rows(read_ids, slots, min(rows_per_batch, rows_within_memory)):
        rows = [openings[row] for row in batch]
        for row, token_ids in zip(batch, _decode_batch(base, rows, router, endings), strict=True):
            generated[row] = token_ids
        on_rows_done(batch)
    return generated


def _can_unread(base: BaseModel) -> bool:
    """Return whether what a model has read can be hidden from it again.

    A sliding window has moved on by then, and a recurrent state has taken it in.
    """
    layers = DynamicCache(config=base.model.config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


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
        self.generated: list[list[int]] = [[] for _ in openings]
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
        begins = [(row.slot, row.prompt_ids, row.draft) for row in self._openings]
        distinct = list(dict.fromkeys(begins))
        padded = pad_left([prompt_ids + draft for _, prompt_ids, draft in distinct], self._base)
        longest_draft = max(len(draft) for _, _, draft in distinct)
        with router.answering([slot for slot, _, _ in distinct]):
            logits = self._forward(padded.ids, padded.mask, padded.positions, longest_draft + 1)

        agreed = _count_agreed([draft for _, _, draft in distinct], logits)
        rejected = torch.tensor(
            [[len(draft) - count] for (_, _, draft), count in zip(distinct, agreed, strict=True)],
            device=self._base.device,
        )
        width = padded.ids.shape[1]
        columns = torch.arange(width, device=self._base.device)
        self._mask = padded.mask * (columns < width - rejected)
        self._positions = padded.positions[:, -1:] - rejected
        # What is hidden is no history; each row repeats a token of its own there.
        own = torch.tensor([[ids[0]] for _, ids, _ in distinct], device=self._base.device)
        self._history = padded.ids.where(self._mask.bool(), own)
        rows = torch.arange(len(distinct), device=self._base.device)
        logits = logits[rows, longest_draft - rejected.squeeze(1)]

        place_of = {begin: place for place, begin in enumerate(distinct)}
        places = [place_of[begin] for begin in begins]
        self.generated = [
            list(row.draft[: agreed[place]])
            for row, place in zip(self._openings, places, strict=True)
        ]
        if len(distinct) < len(begins):
            rows_of = torch.tensor(places, device=self._base.device)
            self._select(rows_of)
            logits = logits[rows_of]
        self._choose(logits)

    def read_tokens(self) -> None:
        """Read the tokens chosen last, and choose the next ones."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._tokens)], dim=1)
        self._history = torch.cat([self._history, self._tokens], dim=1)
        # A finished row may run past the last position that the model knows.
        self._positions = (self._positions + 1).clamp(max=self._base.context_tokens - 1)
        logits = self._forward(self._tokens, self._mask, self._positions, 1)
        self._choose(logits[:, -1])

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

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, kept: int) -> Tensor:
        """Return the logits after the last `kept` tokens, (rows, kept, vocabulary)."""
        output = self._base.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        logits: Tensor = output.logits
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


def _count_agreed(drafts: Sequence[tuple[int, ...]], logits: Tensor) -> list[int]:
    """Return how many tokens of each draft, from its first on, are the likeliest.

    Args:
        drafts: The guesses, the longest of `kept - 1` tokens.
        logits: (rows, kept, vocabulary); the last of a row follow its draft's last token.
    """
    if logits.shape[1] == 1:
        return [0] * len(drafts)
    likeliest = logits.argmax(dim=-1).tolist()
    return [
        # The tokens after the prompt's last, up to the one that follows the whole draft.
        [*map(eq, draft, tokens[-1 - len(draft) : -1]), False].index(False)
        for draft, tokens in zip(drafts, likeliest, strict=True)
    ]


def _stack_uniforms(openings: Sequence[Opening]) -> NDArray[np.float32]:
    """Return the rows' numbers side by side (rows, steps), 0 where a row has none."""
    steps = max(opening.sampling.max_new_tokens for opening in openings)
    stacked = np.zeros((len(openings), steps), dtype=np.float32)
    for numbers, opening in zip(stacked, openings, strict=True):
        numbers[: len(opening.uniforms)] = opening.uniforms
    return stacked
