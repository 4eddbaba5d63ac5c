"""Decodes many rows token by token in batches, each row as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import eq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from data.prompts import PromptStyle
from data.recipes import Sampling
from objectives.answers.batches import batch_rows
from objectives.answers.cache import (
    join_states,
    keeps_everything,
    make_cache,
    may_share_beginnings,
    select_rows,
    take_states,
)
from objectives.answers.endings import Endings
from objectives.answers.request import AdapterRouter
from objectives.answers.sampling import History, TokenChooser, hide_padding
from objectives.models.base import BaseModel, cache_argument, takes_positions
from objectives.models.machine.memory import with_rows_that_fit
from objectives.models.passes.blocks import Entries
from objectives.models.passes.reading import (
    Rows,
    attending,
    logits_only_of,
    pad_left,
    share_beginnings,
)

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
    nothing is drawn. So has `chances`, by which XTC acts or not. An answer's end depends on the
    `style` that it is asked in. `draft` is a guess of what will
    be generated, for rows that take the likeliest token without a repetition penalty: the model
    reads it together with the prompt and keeps what it would have said itself. A guess changes the
    work, never the result, as long as no beginning of it is over (greedy speculative decoding:
    Stern et al. 2018, 1811.03115).
    """

    prompt_ids: tuple[int, ...]
    slot: int
    sampling: Sampling
    uniforms: NDArray[np.float64]
    chances: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    draft: tuple[int, ...] = ()
    style: PromptStyle = "plain"

    @property
    def read_ids(self) -> tuple[int, ...]:
        """Return what the model reads first."""
        return self.prompt_ids + self.draft


@torch.inference_mode()
def decode(
    base: BaseModel,
    openings: Sequence[Opening],
    *,
    router: AdapterRouter,
    endings: Endings,
    rows_per_batch: int,
) -> list[tuple[int, ...]]:
    """Return the generated token ids of every row, with the EOS where one was generated.

    Rows never influence each other beyond the rounding of floating point numbers. Where rows end,
    others join those that go on, so that the model seldom reads few. Fewer rows than asked for are
    read at once if they do not fit the memory.
    """
    if not openings:
        return []
    # A draft is compared with what is likeliest before anything is banned, and leaves hidden
    # columns where it was wrong.
    if (
        base.token_ids.banned
        or not takes_positions(base.model)
        or not keeps_everything(make_cache(base.model))
    ):
        openings = [replace(opening, draft=()) for opening in openings]
    read_ids = [opening.read_ids for opening in openings]
    slots = [opening.slot for opening in openings]
    longest_draft = max(len(opening.draft) for opening in openings)
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    rows_within_memory = max(1, _LOGITS_PER_PASS // (vocabulary * (longest_draft + 1)))
    rows_per_batch = min(rows_per_batch, rows_within_memory)

    def decode_with(most_rows: int) -> list[tuple[int, ...]]:
        reader = _Reader(base, openings, router, endings)
        # Half of the rows can be unfinished when the others are replaced.
        for batch in batch_rows(read_ids, slots, (most_rows + 1) // 2):
            reader.read_on(most_rows - len(batch))
            reader.open_rows(batch)
        reader.read_on(0)
        return [tuple(token_ids) for token_ids in reader.generated]

    return with_rows_that_fit(
        base.model, rows_per_batch, decode_with, row_tokens=longest_row(openings)
    )


def longest_row(openings: Sequence[Opening]) -> int:
    """Return the most tokens that a row may come to: its prompt and its longest answer."""
    return max(len(each.prompt_ids) + each.sampling.max_new_tokens for each in openings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unfinished:
    """Rows between two passes: the fields of `_Reader`, and each layer's keys and values."""

    numbers: list[int]
    mask: Tensor
    positions: Tensor
    history: Tensor
    tokens: Tensor
    states: list[tuple[Tensor, Tensor]]


class _Reader:
    """Rows on their way: what the model has read of them, and what they have generated.

    Tensors have a row for each of `_reading`, the numbers of the openings that the model reads on.
    A finished row stays among them, reading tokens that nobody uses, until it is dropped.
    """

    _mask: Tensor  # (rows, tokens), 1 where the row has a token
    _positions: Tensor  # (rows, 1), of the token read last among the row's own
    _history: Tensor  # (rows, tokens), what was read, padded with tokens of the row's own
    _tokens: Tensor  # (rows, 1), chosen and not read yet

    def __init__(
        self,
        base: BaseModel,
        openings: Sequence[Opening],
        router: AdapterRouter,
        endings: Endings,
    ) -> None:
        self._base = base
        self._openings = openings
        self._router = router
        self._endings = endings
        self.generated: list[list[int]] = [[] for _ in openings]
        self._is_over = [False] * len(openings)
        self._uniforms = _stack(openings, [opening.uniforms for opening in openings])
        chances = [opening.chances for opening in openings]
        self._chances = _stack(openings, chances) if any(map(len, chances)) else None
        # Mirostat begins at twice the surprise it aims at.
        self._surprise_limits = torch.tensor(
            [2 * opening.sampling.mirostat_tau for opening in openings], device=base.device
        )
        self._reading: list[int] = []
        self._cache = make_cache(base.model)
        self._shares_beginnings = may_share_beginnings(base.model)

    @property
    def _unfinished(self) -> int:
        return sum(not self._is_over[row] for row in self._reading)

    def read_on(self, most_unfinished: int) -> None:
        """Read on until at most so many rows are not over, and let go of the others.

        Where the cache takes in no further rows, all are read to their ends.
        """
        if not keeps_everything(self._cache):
            most_unfinished = 0
        while self._unfinished > most_unfinished:
            self._drop_finished()
            enough = max(most_unfinished, int(len(self._reading) * (1 - _DROPPED_SHARE)))
            with self._router.answering([self._openings[row].slot for row in self._reading]):
                while self._unfinished > enough:
                    self._read_tokens()
        self._drop_finished()

    def open_rows(self, numbers: Sequence[int]) -> None:
        """Read what rows begin with, choose a token for each, and put them to those that go on.

        Rows of one slot that begin alike, as under several samplings, are read once.
        """
        before = self._take_out()
        openings = [self._openings[row] for row in numbers]
        begins = [(row.slot, row.prompt_ids, row.draft) for row in openings]
        distinct = list(dict.fromkeys(begins))
        drafts = [draft for _, _, draft in distinct]
        rows = [prompt_ids + draft for _, prompt_ids, draft in distinct]
        padded = pad_left(self._base, rows)
        assert padded.mask is not None
        slots = [slot for slot, _, _ in distinct]
        self._cache = make_cache(self._base.model)
        logits, places_of = self._read_rows(rows, padded, slots, drafts)

        agreed = _count_agreed(drafts, places_of, logits)
        rejected = torch.tensor(
            [[len(draft) - count] for draft, count in zip(drafts, agreed, strict=True)],
            device=self._base.device,
        )
        width = padded.token_ids.shape[1]
        columns = torch.arange(width, device=self._base.device)
        self._mask = padded.mask * (columns < width - rejected)
        self._positions = padded.positions[:, -1:] - rejected
        # What is hidden is no history; each row repeats a token of its own there.
        self._history = hide_padding(padded.token_ids, self._mask)

        place_of = {begin: place for place, begin in enumerate(distinct)}
        places = [place_of[begin] for begin in begins]
        for number, opening, place in zip(numbers, openings, places, strict=True):
            self.generated[number] = list(opening.draft[: agreed[place]])
        if len(distinct) < len(begins):
            self._select(torch.tensor(places, device=self._base.device))
        self._set_reading(numbers)
        last = [int(places_of[place][agreed[place]]) for place in places]
        self._choose(logits[torch.tensor(last, device=self._base.device)])
        if before is not None:
            self._put_first(before)

    def _read_rows(
        self,
        rows: Sequence[tuple[int, ...]],
        padded: Rows,
        slots: Sequence[int],
        drafts: Sequence[tuple[int, ...]],
    ) -> tuple[Tensor, list[Entries]]:
        """Fill the cache with rows; return the logits after each prompt and each draft token.

        Returns:
            Logits (places, vocabulary), and for every row the places of its own: after its prompt
            first, after its draft last.
        """
        model = self._base.model
        laid = share_beginnings(self._base, rows, slots) if self._shares_beginnings else padded
        last = [
            entries[-1 - len(draft) :]
            for entries, draft in zip(laid.entries_of, drafts, strict=True)
        ]
        read, places = np.unique(np.concatenate(last), return_inverse=True)
        ends = np.cumsum([len(entries) for entries in last])
        with (
            self._router.answering(np.asarray(slots)[laid.owners].tolist()),
            attending(model, laid, self._cache) as arguments,
            logits_only_of(model, torch.from_numpy(read).to(self._base.device)),
        ):
            logits: Tensor = model(**arguments).logits
        return logits, np.split(places, ends[:-1])

    def _read_tokens(self) -> None:
        """Read the tokens chosen last, and choose the next ones."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._tokens)], dim=1)
        self._history = torch.cat([self._history, self._tokens], dim=1)
        # A finished row may run past the last position that the model knows.
        self._positions = (self._positions + 1).clamp(max=self._base.context_tokens - 1)
        model = self._base.model
        output = model(
            input_ids=self._tokens,
            attention_mask=self._mask,
            position_ids=self._positions,
            use_cache=True,
            **{cache_argument(model): self._cache},
        )
        self._choose(output.logits[:, -1])

    def _drop_finished(self) -> None:
        """Let the model read only rows that are not over."""
        kept = [place for place, row in enumerate(self._reading) if not self._is_over[row]]
        if len(kept) == len(self._reading):
            return
        self._set_reading([self._reading[place] for place in kept])
        if not kept:
            return
        places = torch.tensor(kept, device=self._base.device)
        self._select(places)
        self._tokens = self._tokens[places]

    def _set_reading(self, numbers: Sequence[int]) -> None:
        self._reading = list(numbers)
        samplings = [self._openings[row].sampling for row in self._reading]
        self._chooser = TokenChooser(samplings, self._base.device, token_ids=self._base.token_ids)

    def _select(self, places: Tensor) -> None:
        select_rows(self._cache, places)
        self._mask = self._mask[places]
        self._positions = self._positions[places]
        self._history = self._history[places]

    def _take_out(self) -> _Unfinished | None:
        """Return the rows that go on, if there are any."""
        if not self._reading:
            return None
        # Columns that only rows had which are gone.
        unused = int(self._mask.any(dim=0).int().argmax())
        return _Unfinished(
            numbers=self._reading,
            mask=self._mask[:, unused:],
            positions=self._positions,
            history=self._history[:, unused:],
            tokens=self._tokens,
            states=take_states(self._cache, first_column=unused),
        )

    def _put_first(self, before: _Unfinished) -> None:
        """Put rows that were taken out before those that are read now."""
        width = max(self._mask.shape[1], before.mask.shape[1])

        def join(one: Tensor, other: Tensor) -> Tensor:
            return torch.cat([pad(each, (width - each.shape[1], 0)) for each in (one, other)])

        def repeat_own(history: Tensor) -> Tensor:
            return torch.cat([history[:, -1:].expand(-1, width - history.shape[1]), history], 1)

        self._mask = join(before.mask, self._mask)
        self._history = torch.cat([repeat_own(before.history), repeat_own(self._history)])
        self._positions = torch.cat([before.positions, self._positions])
        self._tokens = torch.cat([before.tokens, self._tokens])
        join_states(self._cache, before.states, width=width)
        self._set_reading([*before.numbers, *self._reading])

    def _choose(self, logits: Tensor) -> None:
        # A finished row may have used up its numbers; what it draws is not used.
        last = self._uniforms.shape[1] - 1
        steps = [min(len(self.generated[row]), last) for row in self._reading]

        def look_up(numbers: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(numbers[self._reading, steps]).to(self._base.device)

        uniforms = look_up(self._uniforms)
        chances = None if self._chances is None else look_up(self._chances)
        rows = torch.tensor(self._reading, device=self._base.device)
        limits = self._surprise_limits[rows]
        history = self._read_history()
        tokens = self._chooser.choose(logits, history, uniforms, limits, chances)
        self._surprise_limits[rows] = limits
        self._tokens = tokens[:, None]
        for row, token in zip(self._reading, tokens.tolist(), strict=True):
            if not self._is_over[row]:
                self.generated[row].append(token)
                opening = self._openings[row]
                self._is_over[row] = self._endings.is_over(
                    self.generated[row], opening.sampling.max_new_tokens, opening.style
                )

    def _read_history(self) -> History:
        """Return what the rows have read; a finished row's answer may seem to begin later."""
        return History.of_lengths(
            self._history,
            prompts=[len(self._openings[row].prompt_ids) for row in self._reading],
            answers=[len(self.generated[row]) for row in self._reading],
        )


def _count_agreed(
    drafts: Sequence[tuple[int, ...]], places_of: Sequence[Entries], logits: Tensor
) -> list[int]:
    """Return how many tokens of each draft, from its first on, are the likeliest.

    Args:
        drafts: The guesses.
        places_of: For every draft the places among `logits` of what follows the prompt and each of
            its tokens.
        logits: (places, vocabulary).
    """
    if not any(drafts):
        return [0] * len(drafts)
    likeliest = logits.argmax(dim=-1).cpu().numpy()
    return [
        [*map(eq, draft, likeliest[places[:-1]].tolist()), False].index(False)
        for draft, places in zip(drafts, places_of, strict=True)
    ]


def _stack(
    openings: Sequence[Opening], numbers_of: Sequence[NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Return the rows' numbers side by side (rows, steps), 0 where a row has none."""
    steps = max(opening.sampling.max_new_tokens for opening in openings)
    stacked = np.zeros((len(openings), steps), dtype=np.float32)
    for numbers, own in zip(stacked, numbers_of, strict=True):
        numbers[: len(own)] = own
    return stacked
