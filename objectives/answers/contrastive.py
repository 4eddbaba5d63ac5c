"""Contrastive search: of the likeliest next tokens the one least like what was said before.

Su et al. 2022 (2202.06417): every one of `top_k` candidates is read, and taken is the one of the
highest (1 - alpha) * probability - alpha * similarity, where the similarity is the largest cosine
between the candidate's last hidden state and those of all tokens before it. transformers has it
only as remote code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
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


@torch.inference_mode()
def decode_contrastively(
    base: BaseModel,
    openings: Sequence[Opening],
    *,
    router: AdapterRouter,
    endings: Endings,
    rows_per_batch: int,
) -> list[tuple[int, ...]]:
    """Return the generated token ids of every row, with the EOS where one was generated.

    Rows never influence each other beyond the rounding of floating point numbers. Candidates count
    as rows in `rows_per_batch`.
    """
    prompts = [opening.prompt_ids for opening in openings]
    candidates = [(opening.sampling.top_k,) for opening in openings]

    def decode_with(most_rows: int) -> list[tuple[int, ...]]:
        generated: dict[int, tuple[int, ...]] = {}
        for numbers in batch_alike(prompts, candidates, most_rows):
            batch = [openings[number] for number in numbers]
            answers = _Batch(base, batch, router, endings).run()
            generated.update(zip(numbers, answers, strict=True))
        return [generated[number] for number in range(len(openings))]

    if not openings:
        return []
    return with_rows_that_fit(
        base.model, rows_per_batch, decode_with, row_tokens=longest_row(openings)
    )


class _Batch:
    """Rows that are read together; tensors have a row for each that is not over."""

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
        self._generated: list[list[int]] = [[] for _ in openings]
        self._reading = list(range(len(openings)))
        self._top_k = openings[0].sampling.top_k

    def run(self) -> list[tuple[int, ...]]:
        """Return what every row generates."""
        self._read_prompts()
        while self._reading:
            self._take_a_token()
            self._drop_finished()
        return [tuple(token_ids) for token_ids in self._generated]

    def _read_prompts(self) -> None:
        model = self._base.model
        rows = pad_left(self._base, [opening.prompt_ids for opening in self._openings])
        assert rows.mask is not None
        # Not the cache that has room: candidates come and go, and copy it anyway.
        self._cache = DynamicCache(config=model.config)
        slots = [self._openings[row].slot for row in rows.owners]
        with (
            self._router.answering(slots),
            attending(model, rows, self._cache) as arguments,
        ):
            output = model(**arguments, output_hidden_states=True)
        self._logits = output.logits[:, -1]
        self._hidden = normalize(output.hidden_states[-1].float(), dim=-1)
        self._mask = rows.mask
        self._positions = rows.positions[:, -1:]
        self._history = hide_padding(rows.token_ids, rows.mask)

    def _take_a_token(self) -> None:
        """Read every row's candidates and keep the best."""
        rows, top_k = len(self._reading), self._top_k
        samplings = [self._openings[row].sampling for row in self._reading]
        alpha = torch.tensor([[s.penalty_alpha] for s in samplings], device=self._base.device)
        chooser = TokenChooser(samplings, self._base.device, token_ids=self._base.token_ids)
        history = History.of_lengths(
            self._history,
            prompts=[len(self._openings[row].prompt_ids) for row in self._reading],
            answers=[len(self._generated[row]) for row in self._reading],
        )
        scores = chooser.score(self._logits, history)
        shares, candidates = scores.softmax(dim=-1).topk(top_k, dim=-1)
        logits, hidden = self._read(candidates)
        likeness = torch.einsum("rkh,rth->rkt", hidden, self._hidden)
        likeness = likeness.masked_fill(self._mask[:, None] == 0, -torch.inf).amax(dim=-1)
        merits = (1 - alpha) * shares - alpha * likeness
        # A token that must not come is none because it would be something new.
        best = merits.masked_fill(shares == 0, -torch.inf).argmax(dim=-1, keepdim=True)

        tokens = candidates.gather(1, best)
        places = torch.arange(rows, device=self._base.device) * top_k + best[:, 0]
        select_rows(self._cache, places)
        self._logits = logits[places]
        self._hidden = torch.cat([self._hidden, hidden.flatten(0, 1)[places, None]], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(tokens)], dim=1)
        self._history = torch.cat([self._history, tokens], dim=1)
        self._positions = self._positions + 1
        for row, token in zip(self._reading, tokens[:, 0].tolist(), strict=True):
            self._generated[row].append(token)

    def _read(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits after each candidate (rows * k, vocabulary) and its hidden state.

        Hidden states are (rows, k, features), of length 1.
        """
        model, top_k = self._base.model, self._top_k
        mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._cache.batch_repeat_interleave(top_k)
        slots = [self._openings[row].slot for row in self._reading for _ in range(top_k)]
        with self._router.answering(slots):
            output = model(
                input_ids=candidates.reshape(-1, 1),
                attention_mask=mask.repeat_interleave(top_k, dim=0),
                position_ids=(self._positions + 1).repeat_interleave(top_k, dim=0),
                use_cache=True,
                output_hidden_states=True,
                **{cache_argument(model): self._cache},
            )
        hidden = normalize(output.hidden_states[-1][:, -1].float(), dim=-1)
        return output.logits[:, -1], hidden.reshape(-1, top_k, hidden.shape[-1])

    def _drop_finished(self) -> None:
        kept = [
            place
            for place, row in enumerate(self._reading)
            if not self._endings.is_over(
                self._generated[row],
                self._openings[row].sampling.max_new_tokens,
                self._openings[row].style,
            )
        ]
        if len(kept) == len(self._reading):
            return
        self._reading = [self._reading[place] for place in kept]
        places = torch.tensor(kept, dtype=torch.long, device=self._base.device)
        select_rows(self._cache, places)
        for name in ("_logits", "_hidden", "_mask", "_positions", "_history"):
            setattr(self, name, getattr(self, name)[places])
