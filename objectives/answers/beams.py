"""Beam search: of several continuations of a prompt that are read side by side, the likeliest.

It means what transformers' beam search means, of which it keeps every rule: which beams go on,
which are finished, and when none can become better. Where tokens are drawn, continuations are
drawn without replacement. As in transformers a beam ends at EOS or at its longest, not where its
answer has ended, for its further tokens count in its score; only once all beams of a prompt begin
with the same ended answer, whichever is best no longer matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from objectives.answers.batches import batch_alike
from objectives.answers.cache import select_rows
from objectives.answers.decode import Opening, longest_row
from objectives.answers.endings import Endings
from objectives.answers.request import AdapterRouter
from objectives.answers.sampling import History, TokenChooser, hide_padding
from objectives.models.base import BaseModel, cache_argument
from objectives.models.machine.memory import with_rows_that_fit
from objectives.models.passes.reading import attending, pad_left

_NEVER = -1e9  # a score that no continuation has
_STEPS_BETWEEN_LOOKS = 4  # at whether all beams begin with the same ended answer


@torch.inference_mode()
def decode_by_beams(
    base: BaseModel,
    openings: Sequence[Opening],
    *,
    router: AdapterRouter,
    endings: Endings,
    rows_per_batch: int,
) -> list[tuple[int, ...]]:
    """Return the token ids of every row's best beam, cut where its answer has ended.

    Rows never influence each other beyond the rounding of floating point numbers. Beams count as
    rows in `rows_per_batch`.
    """
    prompts = [opening.prompt_ids for opening in openings]
    sizes = [(o.sampling.num_beams, o.sampling.max_new_tokens) for o in openings]

    def decode_with(most_rows: int) -> list[tuple[int, ...]]:
        generated: dict[int, tuple[int, ...]] = {}
        for numbers in batch_alike(prompts, sizes, most_rows):
            batch = [openings[number] for number in numbers]
            best = _Batch(base, batch, router, endings).run()
            for number, token_ids in zip(numbers, best, strict=True):
                opening = openings[number]
                generated[number] = endings.trim(
                    token_ids, opening.sampling.max_new_tokens, opening.style
                )
        return [generated[number] for number in range(len(openings))]

    if not openings:
        return []
    return with_rows_that_fit(
        base.model, rows_per_batch, decode_with, row_tokens=longest_row(openings)
    )


class _Batch:
    """Rows that are read together; tensors are (rows, beams, ...) or have a row per beam."""

    def __init__(
        self,
        base: BaseModel,
        openings: Sequence[Opening],
        router: AdapterRouter,
        endings: Endings,
    ) -> None:
        self._endings = endings
        self._base = base
        self._openings = openings
        self._router = router
        self._device = base.device
        self._ends = torch.tensor(base.token_ids.ends, device=self._device)
        first = openings[0].sampling
        self._beams, self._longest = first.num_beams, first.max_new_tokens
        self._reading = list(range(len(openings)))
        self._best: list[tuple[int, ...]] = [()] * len(openings)
        rows, beams = len(openings), self._beams
        # Only one beam begins, or all would be alike.
        self._scores = torch.full((rows, beams), _NEVER, device=self._device)
        self._scores[:, 0] = 0
        self._tokens = torch.zeros((rows, beams, 0), dtype=torch.long, device=self._device)
        self._finished_scores = torch.full((rows, beams), _NEVER, device=self._device)
        self._finished = torch.zeros(
            (rows, beams, self._longest), dtype=torch.long, device=self._device
        )
        self._finished_lengths = torch.zeros((rows, beams), dtype=torch.long, device=self._device)
        self._is_finished = torch.zeros((rows, beams), dtype=torch.bool, device=self._device)
        self._may_improve = torch.ones((rows, 1), dtype=torch.bool, device=self._device)
        samplings = [opening.sampling for opening in openings]
        self._length_penalties = torch.tensor(
            [[sampling.length_penalty] for sampling in samplings], device=self._device
        )
        self._stops_early = torch.tensor(
            [[sampling.early_stopping] for sampling in samplings], device=self._device
        )

    def run(self) -> list[tuple[int, ...]]:
        """Return the best beam of every row."""
        self._read_prompts()
        while self._reading:
            hits_end = self._go_on()
            self._let_go(hits_end)
            if self._reading:
                self._read_tokens()
        return self._best

    def _read_prompts(self) -> None:
        model = self._base.model
        rows = pad_left(self._base, [opening.prompt_ids for opening in self._openings])
        assert rows.mask is not None
        self._cache = DynamicCache(config=model.config)
        with (
            self._router.answering([self._openings[row].slot for row in rows.owners]),
            attending(model, rows, self._cache) as arguments,
        ):
            output = model(**arguments)
        self._cache.batch_repeat_interleave(self._beams)
        self._logits = output.logits[:, -1].repeat_interleave(self._beams, dim=0)
        self._mask = rows.mask.repeat_interleave(self._beams, dim=0)
        self._positions = rows.positions[:, -1:].repeat_interleave(self._beams, dim=0)
        self._prompts = hide_padding(rows.token_ids, rows.mask)

    def _go_on(self) -> Tensor:
        """Choose every row's beams for the next token; return which candidates have ended."""
        beams, length = self._beams, self._tokens.shape[2] + 1
        accumulated = self._score_continuations()  # (rows, beams * vocabulary)
        vocabulary = accumulated.shape[1] // beams
        places = self._choose(accumulated, 2 * beams)
        scores = accumulated.gather(1, places)
        origin, token = places // vocabulary, places % vocabulary
        texts = torch.cat([_gather(self._tokens, origin), token[..., None]], dim=2)
        hits_end = torch.isin(token, self._ends) | (length >= self._longest)

        self._finish(scores, texts, hits_end)
        going, order = (scores + hits_end * _NEVER).topk(beams)
        self._scores = going
        self._tokens = _gather(texts, order)
        rows = torch.arange(len(self._reading), device=self._device)[:, None] * beams
        self._cache.reorder_cache((rows + origin.gather(1, order)).flatten())
        self._update_hope(length)
        return hits_end

    def _score_continuations(self) -> Tensor:
        samplings = [self._openings[row].sampling for row in self._reading]
        each = [sampling for sampling in samplings for _ in range(self._beams)]
        chooser = TokenChooser(each, self._device, token_ids=self._base.token_ids)
        scores = chooser.score(self._logits.float().log_softmax(dim=-1), self._history())
        return (scores + self._scores.reshape(-1, 1)).reshape(len(samplings), -1)

    def _choose(self, accumulated: Tensor, count: int) -> Tensor:
        """Return the places of the highest scores, or of draws without replacement (rows, count).

        The highest of scores with Gumbel noise are such draws (Kool et al. 2019, 1903.06059).
        """
        noisy = accumulated.clone()
        for place, row in enumerate(self._reading):
            if self._openings[row].sampling.do_sample:
                noisy[place] += self._noise(row, accumulated.shape[1])
        return noisy.topk(count).indices

    def _noise(self, row: int, count: int) -> Tensor:
        """Return Gumbel noise that the row's own number for this step decides."""
        number = self._openings[row].uniforms[self._tokens.shape[2]]
        philox = np.random.Philox(key=int(number * 2**53))
        noise = np.random.Generator(philox).gumbel(size=count)
        return torch.from_numpy(noise).to(self._device, torch.float32)

    def _finish(self, scores: Tensor, texts: Tensor, hits_end: Tensor) -> None:
        """Take candidates that have just ended among the finished, as many as there are beams."""
        beams, length = self._beams, texts.shape[2]
        ended = hits_end.clone()
        ended[:, beams:] = False  # the others are there only so that enough go on
        scores = scores / length**self._length_penalties
        is_full = self._is_finished.all(dim=1, keepdim=True) & self._stops_early
        scores = scores + (is_full | ~self._may_improve | ~ended) * _NEVER
        padded = torch.nn.functional.pad(texts, (0, self._longest - length))
        lengths = torch.full_like(ended, length, dtype=torch.long)
        self._finished_scores, best = torch.cat([self._finished_scores, scores], 1).topk(beams)
        self._finished = _gather(torch.cat([self._finished, padded], 1), best)
        self._finished_lengths = torch.cat([self._finished_lengths, lengths], 1).gather(1, best)
        self._is_finished = torch.cat([self._is_finished, ended], 1).gather(1, best)

    def _update_hope(self, length: int) -> None:
        """Note which rows can still find a better beam than their worst finished one."""
        possible = self._scores[:, :1] / length**self._length_penalties
        worst = self._finished_scores.amin(dim=1, keepdim=True)
        worst = torch.where(self._is_finished, worst, _NEVER)
        self._may_improve &= (possible > worst).any(dim=1, keepdim=True)

    def _let_go(self, hits_end: Tensor) -> None:
        """Keep the best beams of rows that are over, and read the other rows on."""
        over = (
            ~self._may_improve[:, 0]
            | (self._is_finished.all(dim=1) & self._stops_early[:, 0])
            | hits_end.all(dim=1)
        ).tolist()
        for place, row in enumerate(self._reading):
            if over[place]:
                length = int(self._finished_lengths[place, 0])
                self._best[row] = tuple(self._finished[place, 0, :length].tolist())
        for place, answer in self._answers_in_common().items():
            if not over[place]:
                self._best[self._reading[place]], over[place] = answer, True
        kept = [place for place, is_over in enumerate(over) if not is_over]
        if len(kept) == len(over):
            return
        self._reading = [self._reading[place] for place in kept]
        rows = torch.tensor(kept, dtype=torch.long, device=self._device)
        for name in (
            "_scores",
            "_tokens",
            "_finished_scores",
            "_finished",
            "_finished_lengths",
            "_is_finished",
            "_may_improve",
            "_length_penalties",
            "_stops_early",
            "_prompts",
        ):
            setattr(self, name, getattr(self, name)[rows])
        beams = torch.arange(self._beams, device=self._device)
        places = (rows[:, None] * self._beams + beams).flatten()
        select_rows(self._cache, places)
        self._mask, self._positions = self._mask[places], self._positions[places]

    def _answers_in_common(self) -> dict[int, tuple[int, ...]]:
        """Return by place the answers that have ended and that all beams of a row begin with."""
        if self._tokens.shape[2] % _STEPS_BETWEEN_LOOKS:
            return {}
        is_common = (self._tokens == self._tokens[:, :1]).all(dim=1)
        lengths = is_common.long().cumprod(dim=1).sum(dim=1)
        lengths = lengths.where(~self._is_finished.any(dim=1), 0)
        answers = {}
        for place, length in enumerate(lengths.tolist()):
            shared = self._tokens[place, 0, :length].tolist()
            style = self._openings[self._reading[place]].style
            if self._endings.may_have_ended(shared, style):
                answer = self._endings.trim(shared, self._longest + 1, style)
                if self._endings.is_over(answer, self._longest + 1, style):
                    answers[place] = answer
        return answers

    def _read_tokens(self) -> None:
        model = self._base.model
        last = self._tokens[:, :, -1:].flatten(0, 1)
        self._mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
        self._positions = self._positions + 1
        slots = [self._openings[row].slot for row in self._reading for _ in range(self._beams)]
        with self._router.answering(slots):
            output = model(
                input_ids=last,
                attention_mask=self._mask,
                position_ids=self._positions,
                use_cache=True,
                **{cache_argument(model): self._cache},
            )
        self._logits = output.logits[:, -1]

    def _history(self) -> History:
        prompts = self._prompts.repeat_interleave(self._beams, dim=0)
        lengths = [
            len(self._openings[row].prompt_ids)
            for row in self._reading
            for _ in range(self._beams)
        ]
        return History.of_lengths(
            torch.cat([prompts, self._tokens.flatten(0, 1)], dim=1),
            prompts=lengths,
            answers=[self._tokens.shape[2]] * len(lengths),
        )


def _gather(texts: Tensor, places: Tensor) -> Tensor:
    """Return the texts (rows, n, tokens) at `places` (rows, m) of each row."""
    return texts.gather(1, places[..., None].expand(-1, -1, texts.shape[2]))
