"""Chooses the next token of every row of a batch, each under sampling settings of its own.

The processors mean what transformers' own mean, in the same order. They differ in that every row
has its own setting, that only the rows that use one are touched, and that sorting is stable: which
of two equally likely tokens stays must not depend on the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.recipes import Sampling

Warp = Callable[[Tensor, Tensor], Tensor]


def draw_uniforms(seed: int, prompt_id: str, steps: int) -> NDArray[np.float64]:
    """Return one number in [0, 1) for every generated token of a prompt.

    They depend on the seed, the prompt and the step alone, so not on the batch, the slot or how
    many steps are asked for.
    """
    digest = hashlib.sha256(f"{seed}\x1f{prompt_id}".encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.random.Generator(philox).random(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PerRow:
    """A setting of those rows of a batch that use it: their numbers and values (rows, 1)."""

    rows: Tensor
    values: Tensor

    def apply(self, warp: Warp, scores: Tensor) -> Tensor:
        """Return scores (rows, vocabulary) with `warp` applied to the rows that use it."""
        if len(self.rows) == 0:
            return scores
        if len(self.rows) == len(scores):
            return warp(scores, self.values)
        return scores.index_copy(0, self.rows, warp(scores[self.rows], self.values))


class TokenChooser:
    """The sampling settings of the rows of a batch as tensors, and the choice of their tokens."""

    def __init__(self, samplings: Sequence[Sampling], device: torch.device) -> None:
        """Prepare the settings; `samplings` are those of the rows, in order."""

        def setting(
            uses: Callable[[Sampling], bool], value: Callable[[Sampling], float]
        ) -> _PerRow:
            rows = [row for row, sampling in enumerate(samplings) if uses(sampling)]
            values = [[value(samplings[row])] for row in rows]
            return _PerRow(
                rows=torch.tensor(rows, dtype=torch.long, device=device),
                values=torch.tensor(values, dtype=torch.float32, device=device).reshape(-1, 1),
            )

        self._penalty = setting(
            lambda s: s.repetition_penalty != 1, lambda s: s.repetition_penalty
        )
        self._warps: tuple[tuple[Warp, _PerRow], ...] = (
            (
                scale_by_temperature,
                setting(lambda s: s.do_sample and s.temperature != 1, lambda s: s.temperature),
            ),
            (keep_top_k, setting(lambda s: s.do_sample and s.top_k > 0, lambda s: s.top_k)),
            # The dropped share is subtracted here, in double precision, as transformers does.
            (keep_top_p, setting(lambda s: s.do_sample and s.top_p < 1, lambda s: 1 - s.top_p)),
            (
                keep_typical,
                setting(lambda s: s.do_sample and s.typical_p < 1, lambda s: s.typical_p),
            ),
        )
        self._drawn = torch.tensor(
            [row for row, sampling in enumerate(samplings) if sampling.do_sample],
            dtype=torch.long,
            device=device,
        )

    def score(self, logits: Tensor, history: Tensor) -> Tensor:
        """Return logits (rows, vocabulary) after every processor; dropped tokens are -inf.

        Args:
            logits: The model's logits (rows, vocabulary).
            history: The token ids of prompt and answer so far (rows, tokens), padded with ids that
                the row has anyway.
        """
        scores = self._penalty.apply(
            lambda some, penalty: penalise_repetition(some, penalty, history[self._penalty.rows]),
            logits.float(),
        )
        for warp, setting in self._warps:
            scores = setting.apply(warp, scores)
        return scores

    def choose(self, logits: Tensor, history: Tensor, uniforms: Tensor) -> Tensor:
        """Return the next token of every row (rows): the likeliest, or a draw where it draws.

        Args:
            logits: As in `score`.
            history: As in `score`.
            uniforms: A number in [0, 1) per row (rows); read only where the row draws.
        """
        scores = self.score(logits, history)
        tokens = scores.argmax(dim=-1)
        if len(self._drawn):
            tokens[self._drawn] = draw_tokens(scores[self._drawn], uniforms[self._drawn])
        return tokens


def penalise_repetition(scores: Tensor, penalty: Tensor, history: Tensor) -> Tensor:
    """Return scores with the tokens of `history` (rows, tokens) made less likely.

    A negative score is multiplied and others are divided, once per token however often it occurred
    (Keskar et al. 2019, 1909.05858, with transformers' care for the sign).
    """
    seen = scores.gather(1, history)
    return scores.scatter(1, history, torch.where(seen < 0, seen * penalty, seen / penalty))


def scale_by_temperature(scores: Tensor, temperature: Tensor) -> Tensor:
    """Return scores divided by each row's temperature."""
    return scores / temperature


def keep_top_k(scores: Tensor, top_k: Tensor) -> Tensor:
    """Return scores without those below the row's `top_k`-th highest; ties with it stay."""
    ranks = top_k.long().clamp(max=scores.shape[-1])
    highest = scores.topk(int(ranks.max()), dim=-1).values
    return scores.masked_fill(scores < highest.gather(1, ranks - 1), -torch.inf)


def keep_top_p(scores: Tensor, dropped_share: Tensor) -> Tensor:
    """Return scores without the unlikeliest tokens that together have the dropped share.

    That share is 1 - top_p; the likeliest token always stays (Holtzman et al. 2020, 1904.09751).
    """
    ascending, order = scores.sort(dim=-1, stable=True)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= dropped_share
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def keep_typical(scores: Tensor, mass: Tensor) -> Tensor:
    """Return scores of the tokens whose surprise is nearest to the expected one.

    As few as have `mass` together, at least one (Meister et al. 2022, 2202.00666).
    """
    log_probabilities = scores.log_softmax(dim=-1)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(dim=-1, keepdim=True)
    distances, order = (-log_probabilities - entropy).abs().sort(dim=-1, stable=True)
    cumulative = scores.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (cumulative < mass).sum(dim=-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    dropped = distances > distances.gather(1, last)
    dropped[:, 0] = False
    return scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def draw_tokens(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Return one token per row, drawn from the softmax of its scores by inverting its sum.

    Args:
        scores: (rows, vocabulary); tokens of score -inf are never drawn.
        uniforms: (rows), in [0, 1).

    Returns:
        Token ids (rows). A row with a NaN gets the last token of the vocabulary.
    """
    cumulative = scores.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Rounding may lift the threshold to the total, which no token exceeds.
    threshold = torch.minimum(
        uniforms[:, None].float() * total, torch.nextafter(total, torch.zeros_like(total))
    )
    tokens = torch.searchsorted(cumulative, threshold, right=True)
    return tokens.squeeze(1).clamp(max=scores.shape[-1] - 1)
