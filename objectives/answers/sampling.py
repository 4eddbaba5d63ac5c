"""Chooses the next token of every row of a batch, each under sampling settings of its own.

The processors mean what transformers' own mean, in the same order, and after them what those of
text-generation-webui mean that transformers does not have. They differ in that every row has its
own setting, that only the rows that use one are touched, and that sorting is stable: which of two
equally likely tokens stays must not depend on the batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from data.recipes import TRUNCATIONS, Sampling
from objectives.models.base import TokenIds

Warp = Callable[[Tensor, Tensor], Tensor]


def draw_uniforms(
    seed: int, prompt_id: str, steps: int, *, purpose: str = ""
) -> NDArray[np.float64]:
    """Return one number in [0, 1) for every generated token of a prompt.

    They depend on the seed, the prompt, the purpose and the step alone, so not on the batch, the
    slot or how many steps are asked for.
    """
    digest = hashlib.sha256(f"{seed}\x1f{prompt_id}{purpose}".encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.random.Generator(philox).random(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The tokens of prompt and answer so far, (rows, columns), a row's last in the last column.

    `begins` (rows, 1) is the column of a row's first token; what stands before it is padding with
    any tokens of the row's own. From the column `answers` (rows, 1) on they are its answer's.
    """

    token_ids: Tensor
    begins: Tensor
    answers: Tensor

    @classmethod
    def of_lengths(
        cls, token_ids: Tensor, *, prompts: Sequence[int], answers: Sequence[int]
    ) -> History:
        """Return the history of rows whose prompts and answers have these many tokens."""
        columns = token_ids.shape[1]
        begins = [
            columns - answer - prompt for prompt, answer in zip(prompts, answers, strict=True)
        ]
        both = torch.tensor(
            [begins, [columns - answer for answer in answers]], device=token_ids.device
        )
        return cls(token_ids=token_ids, begins=both[0, :, None], answers=both[1, :, None])

    def of(self, rows: Tensor) -> History:
        """Return the history of these rows."""
        return History(
            token_ids=self.token_ids[rows], begins=self.begins[rows], answers=self.answers[rows]
        )

    @property
    def prompts(self) -> Tensor:
        """Return the prompts' tokens (rows, columns), each row's first in place of all others."""
        columns = torch.arange(self.token_ids.shape[1], device=self.token_ids.device)
        is_prompt = (columns >= self.begins) & (columns < self.answers)
        return self.token_ids.where(is_prompt, self.token_ids.gather(1, self.begins))


def hide_padding(token_ids: Tensor, mask: Tensor) -> Tensor:
    """Return rows (rows, columns) with their first own token wherever the mask is 0."""
    first = token_ids.gather(1, mask.int().argmax(dim=1, keepdim=True))
    return token_ids.where(mask.bool(), first)


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

    def __init__(
        self,
        samplings: Sequence[Sampling],
        device: torch.device,
        *,
        token_ids: TokenIds,
    ) -> None:
        """Prepare the settings.

        Args:
            samplings: Those of the rows, in order.
            device: Where logits will be.
            token_ids: The model's tokens of meaning. A `min_length` forbids those that end an
                answer; XTC does nothing where it would leave out one of them or a line break.
        """
        self._banned = token_ids.banned
        self._ends = torch.tensor(token_ids.ends, dtype=torch.long, device=device)
        self._may_end = torch.tensor(
            token_ids.ends + token_ids.line_breaks, dtype=torch.long, device=device
        )

        def setting(
            name: str,
            off: float,
            convert: Callable[[float], float] = float,
            *,
            also_when_greedy: bool = False,
            where: Callable[[Sampling], bool] = lambda sampling: True,
        ) -> _PerRow:
            rows = [
                row
                for row, sampling in enumerate(samplings)
                if (sampling.do_sample or also_when_greedy)
                and getattr(sampling, name) != off
                and where(sampling)
            ]
            values = [[convert(getattr(samplings[row], name))] for row in rows]
            return _PerRow(
                rows=torch.tensor(rows, dtype=torch.long, device=device),
                values=torch.tensor(values, dtype=torch.float32, device=device).reshape(-1, 1),
            )

        def truncation(name: str, convert: Callable[[float], float] = float) -> _PerRow:
            return setting(name, TRUNCATIONS[name], convert)

        self._encoder_penalty = setting(
            "encoder_repetition_penalty", 1, lambda penalty: 1 / penalty, also_when_greedy=True
        )
        self._penalty = setting("repetition_penalty", 1, also_when_greedy=True)
        self._ngram_sizes = setting("no_repeat_ngram_size", 0, also_when_greedy=True)
        self._shortest = setting("min_length", 0, also_when_greedy=True)

        def temperatures(last: bool) -> tuple[tuple[Warp, _PerRow], ...]:
            def is_fixed(sampling: Sampling) -> bool:
                return sampling.temperature_last == last and not sampling.dynatemp

            def follows_entropy(sampling: Sampling) -> bool:
                return sampling.temperature_last == last and bool(sampling.dynatemp)

            moving = setting("dynatemp", 0, where=follows_entropy)
            middle = torch.tensor(
                [[samplings[row].temperature] for row in moving.rows.tolist()], device=device
            ).reshape(-1, 1)
            return (
                (scale_by_temperature, setting("temperature", 1, where=is_fixed)),
                (lambda scores, span: scale_by_entropy(scores, middle, span), moving),
            )

        self._warps: tuple[tuple[Warp, _PerRow], ...] = (
            *temperatures(last=False),
            (keep_top_k, truncation("top_k")),
            # The dropped share is subtracted here, in double precision, as transformers does.
            (keep_top_p, truncation("top_p", lambda top_p: 1 - top_p)),
            (keep_min_p, truncation("min_p")),
            (keep_typical, truncation("typical_p")),
            (keep_above_epsilon, truncation("epsilon_cutoff")),
            (keep_above_eta, truncation("eta_cutoff")),
            (keep_tail_free, truncation("tfs")),
            (keep_top_a, truncation("top_a")),
        )
        self._last_warps = temperatures(last=True)
        self._excluded = truncation("xtc_probability")
        self._thresholds = torch.tensor(
            [[samplings[row].xtc_threshold] for row in self._excluded.rows.tolist()],
            device=device,
        ).reshape(-1, 1)
        self._surprise_aimed_at = setting("mirostat_tau", 0)
        self._surprise_rates = torch.tensor(
            [[samplings[row].mirostat_eta] for row in self._surprise_aimed_at.rows.tolist()],
            device=device,
        ).reshape(-1, 1)
        self._drawn = torch.tensor(
            [row for row, sampling in enumerate(samplings) if sampling.do_sample],
            dtype=torch.long,
            device=device,
        )

    def score(
        self,
        logits: Tensor,
        history: History,
        surprise_limits: Tensor | None = None,
        chances: Tensor | None = None,
    ) -> Tensor:
        """Return logits (rows, vocabulary) after every processor; dropped tokens are -inf.

        Args:
            logits: The model's logits (rows, vocabulary).
            history: What the rows have read and generated.
            surprise_limits: Mirostat's mu in bits (rows); read only where a row uses it. None if
                none does.
            chances: A number in [0, 1) per row (rows), by which XTC acts or does not; None if no
                row uses it.
        """

        def penalise(some: Tensor, penalty: Tensor) -> Tensor:
            return penalise_repetition(some, penalty, history.token_ids[self._penalty.rows])

        def penalise_by_prompt(some: Tensor, penalty: Tensor) -> Tensor:
            of_rows = history.of(self._encoder_penalty.rows)
            return penalise_repetition(some, penalty, of_rows.prompts)

        def forbid(some: Tensor, sizes: Tensor) -> Tensor:
            return forbid_repeated_ngrams(some, sizes, history.of(self._ngram_sizes.rows))

        def go_on(some: Tensor, shortest: Tensor) -> Tensor:
            begins = history.begins[self._shortest.rows]
            is_short = history.token_ids.shape[1] - begins < shortest
            return forbid_tokens(some, is_short, self._ends)

        scores = self._encoder_penalty.apply(penalise_by_prompt, logits.float())
        scores = self._penalty.apply(penalise, scores)
        scores = self._ngram_sizes.apply(forbid, scores)
        scores = forbid_sequences(scores, self._banned, history)
        scores = self._shortest.apply(go_on, scores)
        for warp, setting in self._warps:
            scores = setting.apply(warp, scores)
        if chances is not None:
            acts = chances[self._excluded.rows, None] < self._excluded.values
            scores = self._excluded.apply(
                lambda some, _: exclude_top_choices(some, self._thresholds, acts, self._may_end),
                scores,
            )
        for warp, setting in self._last_warps:
            scores = setting.apply(warp, scores)
        if surprise_limits is None:
            return scores
        limits = surprise_limits[self._surprise_aimed_at.rows, None]
        return self._surprise_aimed_at.apply(
            lambda some, _aim: keep_below_surprise(some, limits), scores
        )

    def choose(
        self,
        logits: Tensor,
        history: History,
        uniforms: Tensor,
        surprise_limits: Tensor | None = None,
        chances: Tensor | None = None,
    ) -> Tensor:
        """Return the next token of every row (rows): the likeliest, or a draw where it draws.

        Args:
            logits: As in `score`.
            history: As in `score`.
            uniforms: A number in [0, 1) per row (rows); read only where the row draws.
            surprise_limits: As in `score`; those in use are changed to what the next token needs.
            chances: As in `score`.
        """
        scores = self.score(logits, history, surprise_limits, chances)
        tokens = scores.argmax(dim=-1)
        if len(self._drawn):
            tokens[self._drawn] = draw_tokens(scores[self._drawn], uniforms[self._drawn])
        rows = self._surprise_aimed_at.rows
        if surprise_limits is not None and len(rows):
            surprise = surprise_in_bits(scores[rows], tokens[rows, None])
            excess = self._surprise_rates * (surprise - self._surprise_aimed_at.values)
            surprise_limits[rows] -= excess.squeeze(1)
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


def scale_by_entropy(scores: Tensor, middle: Tensor, span: Tensor) -> Tensor:
    """Return scores divided by a temperature that grows with their entropy.

    From `middle` - `span` where one token is certain to `middle` + `span` where all that are left
    are equally likely (text-generation-webui's dynamic temperature, with exponent 1).
    """
    logs = scores.log_softmax(dim=-1)
    entropy = -(logs.exp() * logs).nansum(dim=-1, keepdim=True)
    most = (scores > -torch.inf).sum(dim=-1, keepdim=True).float().log()
    share = entropy.clamp(min=1e-10) / most.clamp(min=1e-10)
    return scores / (middle - span + 2 * span * share)


def exclude_top_choices(scores: Tensor, thresholds: Tensor, acts: Tensor, ends: Tensor) -> Tensor:
    """Return scores without the likely tokens but the unlikeliest of them (XTC).

    Likely are those of at least the row's threshold (rows, 1). Rows that do not act (rows, 1), and
    those that would lose one of `ends`, stay as they are.
    """
    descending, order = scores.sort(dim=-1, descending=True, stable=True)
    likely = descending.softmax(dim=-1) >= thresholds
    left_out = torch.cat([likely[:, 1:], torch.zeros_like(likely[:, :1])], dim=1)
    left_out = left_out.scatter(1, order, left_out)
    acts = acts & ~left_out[:, ends].any(dim=1, keepdim=True)
    return scores.masked_fill(left_out & acts, -torch.inf)


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


def keep_min_p(scores: Tensor, least_share: Tensor) -> Tensor:
    """Return scores of tokens at least `least_share` as likely as the likeliest (2407.01082)."""
    probabilities = scores.softmax(dim=-1)
    highest = probabilities.amax(dim=-1, keepdim=True)
    return scores.masked_fill(probabilities < least_share * highest, -torch.inf)


def keep_above_epsilon(scores: Tensor, epsilon: Tensor) -> Tensor:
    """Return scores of tokens of at least this probability, and of the likeliest.

    Hewitt et al. 2022, Truncation Sampling as Language Model Desmoothing (2210.15191).
    """
    return _drop_unlikely(scores, scores.softmax(dim=-1) < epsilon)


def keep_above_eta(scores: Tensor, epsilon: Tensor) -> Tensor:
    """Return scores without tokens below a probability that falls with the entropy; same source.

    It is the lesser of epsilon and sqrt(epsilon) * exp(-entropy); the likeliest token stays.
    """
    log_probabilities = scores.log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    entropy = -(log_probabilities * probabilities).nansum(dim=-1, keepdim=True)
    eta = torch.minimum(epsilon, epsilon.sqrt() * (-entropy).exp())
    return _drop_unlikely(scores, probabilities < eta)


def keep_tail_free(scores: Tensor, mass: Tensor) -> Tensor:
    """Return scores without the tail, which begins where sorted probabilities stop curving.

    What stays has `mass` of the absolute second differences, the likeliest token in any case
    (tail-free sampling, Phénix and Egan 2019). The unlikeliest token is always dropped, and tokens
    of probability zero fall with it, as in text-generation-webui.
    """
    descending, order = scores.sort(dim=-1, descending=True, stable=True)
    curvature = descending.softmax(dim=-1).diff(dim=-1).diff(dim=-1).abs()
    share = (curvature / curvature.sum(dim=-1, keepdim=True)).cumsum(dim=-1)
    # Each second difference belongs to the middle one of its three tokens.
    dropped = pad(pad(share > mass, (1, 0), value=False), (0, 1), value=True)
    return scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def keep_top_a(scores: Tensor, top_a: Tensor) -> Tensor:
    """Return scores of tokens of at least `top_a` times the square of the highest probability.

    As in text-generation-webui and KoboldAI; the likeliest token always stays.
    """
    probabilities = scores.softmax(dim=-1)
    highest = probabilities.amax(dim=-1, keepdim=True)
    return scores.masked_fill(probabilities < top_a * highest.square(), -torch.inf)


def keep_below_surprise(scores: Tensor, limits: Tensor) -> Tensor:
    """Return scores of tokens of at most this surprise in bits (rows, 1), and of the likeliest.

    Mirostat 2 (Basu et al. 2021, 2007.14966), whose mu the limit is.
    """
    surprise = scores.log_softmax(dim=-1) / -math.log(2)
    return _drop_unlikely(scores, surprise > limits)


def surprise_in_bits(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return minus log2 of the probability (rows, 1) of one token (rows, 1) per row."""
    return scores.log_softmax(dim=-1).gather(1, tokens) / -math.log(2)


def forbid_repeated_ngrams(scores: Tensor, sizes: Tensor, history: History) -> Tensor:
    """Return scores without the tokens that would repeat `sizes` (rows, 1) tokens in a row.

    Paulus et al. 2017 (1705.04304), over prompt and answer, as transformers does.
    """
    token_ids = history.token_ids
    columns = token_ids.shape[1]
    repeated = torch.zeros(scores.shape, dtype=torch.int32, device=scores.device)
    for size in sorted(set(sizes.flatten().int().tolist())):
        if size > columns:
            continue
        runs = token_ids.unfold(1, size, 1)
        latest = token_ids[:, columns + 1 - size :]
        begins = torch.arange(runs.shape[1], device=scores.device)
        repeats = (
            (runs[..., :-1] == latest[:, None]).all(dim=-1)
            & (begins >= history.begins)
            & (sizes == size)
        )
        repeated.scatter_add_(1, runs[..., -1], repeats.int())
    return scores.masked_fill(repeated > 0, -torch.inf)


def forbid_sequences(
    scores: Tensor, banned: Sequence[tuple[int, ...]], history: History
) -> Tensor:
    """Return scores without the tokens that would end one of the `banned` sequences.

    Its beginning may lie in the prompt, as in transformers' `bad_words_ids`.
    """
    length = history.token_ids.shape[1]
    for *before, last in banned:
        if len(before) > length:
            continue
        latest = history.token_ids[:, length - len(before) :]
        is_begun = (latest == latest.new_tensor(before)).all(dim=1, keepdim=True)
        is_own = length - len(before) >= history.begins
        scores = forbid_tokens(scores, is_begun & is_own, latest.new_tensor([last]))
    return scores


def forbid_tokens(scores: Tensor, where: Tensor, token_ids: Tensor) -> Tensor:
    """Return scores without these tokens in the rows named by `where` (rows, 1)."""
    named = torch.zeros_like(scores[0], dtype=torch.bool)
    named[token_ids] = True
    return scores.masked_fill(where & named, -torch.inf)


def _drop_unlikely(scores: Tensor, dropped: Tensor) -> Tensor:
    """Return scores without the dropped tokens; the likeliest stay."""
    return scores.masked_fill(dropped & (scores < scores.amax(dim=-1, keepdim=True)), -torch.inf)


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
