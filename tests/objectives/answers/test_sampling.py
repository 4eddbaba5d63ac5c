"""Each processor against transformers' own, or a plain loop, row by row; draws against both.

What transformers does not have is checked against the definitions, written as loops over one row.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    EncoderRepetitionPenaltyLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from data.recipes import GREEDY, Sampling
from objectives.answers.sampling import History, TokenChooser, draw_tokens, draw_uniforms
from objectives.models.base import TokenIds
from search_spaces.presets import PRESETS

CPU = torch.device("cpu")
END = TokenIds(ends=(0,))
VOCABULARY = 50

PENALISED_GREEDY = Sampling(name="penalised", do_sample=False, repetition_penalty=1.7)
SETTINGS = {
    "temperature": [Sampling(name="t", temperature=value) for value in (0.3, 0.7, 1.0, 2.0)],
    "top_k": [Sampling(name="k", top_k=value) for value in (0, 1, 7, 50, 900)],
    "top_p": [Sampling(name="p", top_p=value) for value in (0.001, 0.3, 0.9, 0.99, 1.0)],
    "typical_p": [Sampling(name="y", typical_p=value) for value in (0.001, 0.2, 0.9, 0.99, 1.0)],
    "repetition_penalty": [
        PENALISED_GREEDY,
        *(Sampling(name="r", repetition_penalty=value) for value in (0.8, 1.0, 1.3)),
    ],
    "min_p": [Sampling(name="m", min_p=value) for value in (0.0, 0.05, 0.2, 0.9)],
    "epsilon_cutoff": [
        Sampling(name="e", epsilon_cutoff=value) for value in (0.0, 4e-4, 0.02, 0.3)
    ],
    "eta_cutoff": [Sampling(name="e", eta_cutoff=value) for value in (0.0, 1e-3, 0.02, 0.3)],
    "tfs": [Sampling(name="f", tfs=value) for value in (0.0, 0.5, 0.68, 0.95, 1.0)],
    "top_a": [Sampling(name="a", top_a=value) for value in (0.0, 0.04, 0.2, 0.75, 1.0)],
    "encoder_repetition_penalty": [
        Sampling(name="e", do_sample=False, encoder_repetition_penalty=1.07),
        *(Sampling(name="e", encoder_repetition_penalty=value) for value in (0.8, 1.0, 1.3)),
    ],
    "no_repeat_ngram_size": [
        Sampling(name="n", do_sample=False, no_repeat_ngram_size=2),
        *(Sampling(name="n", no_repeat_ngram_size=value) for value in (0, 1, 2, 3, 40)),
    ],
    "min_length": [
        Sampling(name="l", do_sample=False, min_length=9),
        *(Sampling(name="l", min_length=value) for value in (0, 7, 12, 40)),
    ],
    "dynatemp": [
        Sampling(name="d", temperature=1.55, dynatemp=1.45),
        Sampling(name="d", temperature=1.0, dynatemp=0.5, top_k=9),
        Sampling(name="d", temperature=1.2, dynatemp=1.1, min_p=0.1, temperature_last=True),
        Sampling(name="d", temperature=0.7, min_p=0.1, temperature_last=True),
        Sampling(name="d"),
    ],
    "every preset": list(PRESETS.values()),
    "all together": [
        GREEDY,
        Sampling(name="plain"),
        Sampling(name="webui", temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.15),
        PENALISED_GREEDY,
        Sampling(name="typical", temperature=1.3, typical_p=0.4, top_k=30),
        Sampling(name="narrow", top_p=0.5, typical_p=0.9),
    ],
}


def random_logits(rows: int, *, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def random_history(rows: int) -> History:
    """Return rows of 6 to 12 tokens, of which up to 5 are the answer's, with many repetitions."""
    generator = torch.Generator().manual_seed(5)
    token_ids = torch.randint(6, (rows, 12), generator=generator) * 7
    begins = torch.randint(7, (rows, 1), generator=generator)
    answers = torch.randint(7, 13, (rows, 1), generator=generator)
    # Before its first token a row is padded with it.
    padded = torch.arange(12) < begins
    return History(
        token_ids=token_ids.where(~padded, token_ids.gather(1, begins)),
        begins=begins,
        answers=answers,
    )


def tokens_of(history: History, row: int) -> tuple[Tensor, Tensor]:
    """Return a row's own tokens, and those of its prompt."""
    begin, answer = int(history.begins[row]), int(history.answers[row])
    return history.token_ids[row, begin:], history.token_ids[row, begin:answer]


def score_by_reference(logits: Tensor, tokens: Tensor, prompt: Tensor, s: Sampling) -> Tensor:
    """Return one row's scores, by the processors that `model.generate` would line up for it.

    Those of text-generation-webui follow, as there. Mirostat is checked by itself.
    """
    processors = LogitsProcessorList()
    if s.encoder_repetition_penalty != 1:
        processors.append(
            EncoderRepetitionPenaltyLogitsProcessor(s.encoder_repetition_penalty, prompt[None])
        )
    if s.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    if s.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(s.no_repeat_ngram_size))
    if s.min_length:
        processors.append(MinLengthLogitsProcessor(s.min_length, 0))  # token 0 ends a text
    if s.do_sample:
        if not s.temperature_last and not s.dynatemp:
            processors.append(TemperatureLogitsWarper(s.temperature))
        if not s.temperature_last and s.dynatemp:
            processors.append(lambda _, scores: scale_by_loop(scores, s))
        if s.top_k:
            processors.append(TopKLogitsWarper(s.top_k))
        if s.top_p < 1:
            processors.append(TopPLogitsWarper(s.top_p))
        if s.min_p:
            processors.append(MinPLogitsWarper(s.min_p))
        if s.typical_p < 1:
            processors.append(TypicalLogitsWarper(s.typical_p))
        if s.epsilon_cutoff:
            processors.append(EpsilonLogitsWarper(s.epsilon_cutoff))
        if s.eta_cutoff:
            processors.append(EtaLogitsWarper(s.eta_cutoff))
    scores: Tensor = processors(tokens[None], logits[None])[0]
    if s.do_sample and s.tfs < 1:
        scores = _keep(scores, tail_free_by_loop(scores, s.tfs))
    if s.do_sample and s.top_a:
        scores = _keep(scores, top_a_by_loop(scores, s.top_a))
    if s.do_sample and s.temperature_last:
        scores = scale_by_loop(scores, s) if s.dynatemp else scores / s.temperature
    return scores


def scale_by_loop(scores: Tensor, s: Sampling) -> Tensor:
    """Return scores divided by a temperature that follows their entropy, as the webui has it."""
    entropy, valid = 0.0, 0
    for score, log_share in zip(
        scores.flatten().tolist(), scores.double().log_softmax(-1).flatten().tolist(), strict=True
    ):
        if score > -math.inf:
            entropy -= math.exp(log_share) * log_share
            valid += 1
    share = max(entropy, 1e-10) / max(math.log(valid), 1e-10)
    low, high = s.temperature - s.dynatemp, s.temperature + s.dynatemp
    return scores / (low + (high - low) * share)


def tail_free_by_loop(scores: Tensor, mass: float) -> set[int]:
    """Return the tokens that tail-free sampling keeps, as the webui and KoboldAI have it."""
    order = sorted(range(len(scores)), key=lambda token: -float(scores[token]))
    likely = [float(p) for p in scores.double().softmax(0)[order]]
    slopes = [after - before for before, after in pairwise(likely)]
    curvature = [abs(b - a) for a, b in pairwise(slopes)]
    kept, total = {order[0]}, 0.0
    for token, curve in zip(order[1:-1], curvature, strict=True):
        total += curve / sum(curvature)
        if total > mass:
            break
        kept.add(token)
    return kept


def top_a_by_loop(scores: Tensor, top_a: float) -> set[int]:
    likely = scores.double().softmax(0).tolist()
    return {token for token, p in enumerate(likely) if p >= top_a * max(likely) ** 2}


def _keep(scores: Tensor, kept: set[int]) -> Tensor:
    dropped = torch.tensor([token not in kept for token in range(len(scores))])
    return scores.masked_fill(dropped, -torch.inf)


@pytest.mark.parametrize("processor", SETTINGS)
def test_a_batch_of_mixed_settings_scores_every_row_as_the_reference_does(processor: str) -> None:
    samplings = SETTINGS[processor] * 3
    logits, history = random_logits(len(samplings)), random_history(len(samplings))

    scores = TokenChooser(samplings, CPU, token_ids=END).score(logits, history)

    for row, sampling in enumerate(samplings):
        expected = score_by_reference(logits[row], *tokens_of(history, row), sampling)
        # A temperature that is worked out from the scores is rounded on its way.
        tolerance = 1e-5 if sampling.dynatemp else 0.0
        torch.testing.assert_close(scores[row], expected, rtol=tolerance, atol=0)


def test_a_setting_that_all_rows_use_scores_as_in_a_mixed_batch() -> None:
    sampling = SETTINGS["all together"][2]
    logits, history = random_logits(4), random_history(4)

    alike = TokenChooser([sampling] * 4, CPU, token_ids=END).score(logits, history)
    mixed = TokenChooser([sampling, GREEDY, sampling, GREEDY], CPU, token_ids=END).score(
        logits, history
    )

    assert torch.equal(alike[[0, 2]], mixed[[0, 2]])


def test_greedy_takes_the_likeliest_token_after_the_repetition_penalty() -> None:
    logits = torch.tensor([[2.0, 3.0, 1.0], [2.0, 3.0, 1.0], [-1.0, -1.5, -9.0]])
    history = History(
        token_ids=torch.tensor([[1, 1], [1, 1], [0, 0]]),
        begins=torch.zeros(3, 1, dtype=torch.long),
        answers=torch.ones(3, 1, dtype=torch.long),
    )
    settings = [GREEDY, PENALISED_GREEDY, PENALISED_GREEDY]

    tokens = TokenChooser(settings, CPU, token_ids=END).choose(logits, history, torch.zeros(3))

    # Token 1 falls to 3 / 1.7 = 1.76 < 2, and token 0 to -1 * 1.7 = -1.7 < -1.5.
    assert tokens.tolist() == [1, 0, 1]


def test_half_precision_logits_are_scored_in_single_precision() -> None:
    chooser = TokenChooser([Sampling(name="t", temperature=0.7)], CPU, token_ids=END)
    logits = random_logits(1).bfloat16()

    scores = chooser.score(logits, random_history(1))

    torch.testing.assert_close(scores, logits.float() / 0.7, rtol=0, atol=0)


def test_draws_are_as_frequent_as_the_scores_say() -> None:
    sampling = Sampling(name="hot", temperature=1.5, top_k=12, top_p=0.95)
    logits, history = random_logits(1), random_history(1)
    scores = score_by_reference(logits[0], *tokens_of(history, 0), sampling)
    probabilities = scores.double().softmax(dim=0)
    draws = 20_000
    uniforms = torch.from_numpy(draw_uniforms(2023, "prompt", draws)).float()

    tokens = TokenChooser([sampling] * draws, CPU, token_ids=END).choose(
        logits.expand(draws, -1), history.of(torch.zeros(draws, dtype=torch.long)), uniforms
    )

    counted = Counter(tokens.tolist())
    possible = probabilities.nonzero().squeeze(1).tolist()
    assert set(counted) <= set(possible)
    expected = [float(probabilities[token]) * draws for token in possible]
    assert min(expected) > 5  # chi-square needs no rare cells
    assert chisquare([counted[token] for token in possible], expected).pvalue > 0.01


@given(uniform=st.floats(min_value=0, max_value=1, exclude_max=True))
def test_a_dropped_token_is_never_drawn(uniform: float) -> None:
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -20.0, -torch.inf]])

    (token,) = draw_tokens(scores, torch.tensor([uniform], dtype=torch.float64)).tolist()

    assert token in (1, 3, 4)


def test_a_draw_inverts_the_running_sum_of_probabilities() -> None:
    scores = torch.tensor([[0.2, 0.5, 0.3]]).log().expand(4, -1)

    # The sums are 0.2, 0.7 and 1.
    tokens = draw_tokens(scores, torch.tensor([0.0, 0.21, 0.69, 0.71]))

    assert tokens.tolist() == [0, 1, 1, 2]


def test_a_row_that_is_not_a_number_leaves_its_neighbours_alone() -> None:
    logits, history = random_logits(3), random_history(3)
    broken = logits.clone()
    broken[1] = torch.nan
    settings = [Sampling(name="all", top_p=0.9, top_k=20, typical_p=0.9, temperature=0.8)] * 3
    uniforms = torch.tensor([0.3, 0.5, 0.9])

    expected = (
        TokenChooser(settings, CPU, token_ids=END).choose(logits, history, uniforms).tolist()
    )
    tokens = TokenChooser(settings, CPU, token_ids=END).choose(broken, history, uniforms).tolist()

    assert (tokens[0], tokens[2]) == (expected[0], expected[2])
    assert 0 <= tokens[1] < VOCABULARY


def test_noise_is_the_same_on_every_machine_and_longer_noise_begins_alike() -> None:
    first = draw_uniforms(7, "prompt", 3).tolist()

    assert first == [0.464468623276146, 0.5574487208033205, 0.6680883618725884]
    assert draw_uniforms(7, "prompt", 40)[:3].tolist() == first


def test_noise_differs_by_seed_and_by_prompt() -> None:
    noises = {
        tuple(draw_uniforms(seed, prompt, 4)) for seed in (0, 1, 11) for prompt in ("a", "1a", "b")
    }

    assert len(noises) == 9


def mirostat_by_loop(logits: Tensor, limit: float) -> tuple[set[int], dict[int, float]]:
    """Return the tokens that mirostat 2 keeps at a mu, and each one's surprise after that."""
    likely = logits.double().softmax(0).tolist()
    first = max(range(len(likely)), key=likely.__getitem__)
    kept = {token for token, p in enumerate(likely) if -math.log2(p) <= limit} | {first}
    total = sum(likely[token] for token in kept)
    return kept, {token: -math.log2(likely[token] / total) for token in kept}


@given(tau=st.sampled_from([0.5, 2.0, 5.0, 8.0]), eta=st.sampled_from([0.1, 1.0]))
def test_mirostat_keeps_what_is_not_too_surprising_and_aims_anew(tau: float, eta: float) -> None:
    sampling = Sampling(name="mirostat", mirostat_tau=tau, mirostat_eta=eta, temperature=0.9)
    settings = [GREEDY, sampling, sampling]
    chooser, history = TokenChooser(settings, CPU, token_ids=END), random_history(3)
    limits = torch.tensor([0.0, 2 * tau, 2 * tau])
    expected = limits.tolist()
    for step in range(12):
        logits = random_logits(3, seed=step)
        uniforms = torch.rand(3, generator=torch.Generator().manual_seed(step))
        scores = chooser.score(logits, history, limits)
        tokens = chooser.choose(logits, history, uniforms, limits).tolist()
        assert tokens[0] == int(logits[0].argmax())
        for row in (1, 2):
            kept, surprise = mirostat_by_loop(logits[row] / 0.9, expected[row])
            assert set(scores[row].isfinite().nonzero().flatten().tolist()) == kept
            expected[row] -= eta * (surprise[tokens[row]] - tau)
        torch.testing.assert_close(limits, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_mirostat_still_keeps_the_likeliest_when_all_surprise_too_much() -> None:
    chooser = TokenChooser([Sampling(name="mirostat", mirostat_tau=1.0)], CPU, token_ids=END)
    logits = torch.tensor([[0.1, 0.2, 0.15]])
    history = random_history(1)
    assert chooser.choose(logits, history, torch.tensor([0.9]), torch.tensor([-5.0])) == 1


def test_what_greedy_decoding_does_not_read_decides_nothing() -> None:
    warm = Sampling(name="warm", do_sample=False, temperature=0.7, top_k=40)
    assert warm.what_decides == GREEDY.what_decides
    assert PENALISED_GREEDY.what_decides != GREEDY.what_decides
    assert Sampling(name="a", top_p=0.5).what_decides == Sampling(name="b", top_p=0.5).what_decides


def exclude_by_loop(scores: Tensor, threshold: float, ends: list[int]) -> Tensor:
    """Return one row's scores after XTC has acted, as the webui has it."""
    likely = scores.double().softmax(0).tolist()
    over = sorted(
        (t for t in range(len(likely)) if likely[t] >= threshold), key=lambda t: -likely[t]
    )
    left_out = set(over[:-1])
    return scores if left_out & set(ends) else _keep(scores, set(range(len(likely))) - left_out)


@given(
    seed=st.integers(0, 1000),
    threshold=st.floats(0.01, 0.5),
    chance=st.sampled_from([0.0, 0.25, 0.49, 0.5, 0.75]),
)
def test_xtc_leaves_out_the_likely_tokens_but_the_unlikeliest(
    seed: int, threshold: float, chance: float
) -> None:
    ends = [3, 17]
    sampling = Sampling(name="x", xtc_probability=0.5, xtc_threshold=threshold)
    samplings = [sampling, Sampling(name="plain"), sampling]
    logits, history = random_logits(3, seed=seed), random_history(3)
    chances = torch.tensor([chance, 0.0, 0.0])
    token_ids = TokenIds(ends=(3,), line_breaks=(17,))
    chooser = TokenChooser(samplings, CPU, token_ids=token_ids)
    scores = chooser.score(logits, history, chances=chances)
    acted = exclude_by_loop(logits[0], threshold, ends)
    assert torch.equal(scores[0], acted if chance < 0.5 else logits[0])
    assert torch.equal(scores[1], logits[1])
    assert torch.equal(scores[2], exclude_by_loop(logits[2], threshold, ends))


def test_xtc_acts_as_often_as_it_should_and_never_on_an_answers_end() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.0, 1.0]]).repeat(4000, 1)
    sampling = Sampling(name="x", xtc_probability=0.3)
    chances = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    history = History(
        token_ids=torch.zeros(4000, 1, dtype=torch.long),
        begins=torch.zeros(4000, 1, dtype=torch.long),
        answers=torch.ones(4000, 1, dtype=torch.long),
    )
    scores = TokenChooser([sampling] * 4000, CPU, token_ids=END).score(
        logits, history, chances=chances
    )
    left_out = scores[:, 1] == -math.inf
    assert left_out.float().mean() == pytest.approx(0.3, abs=0.03)
    assert (scores[:, 2] > -math.inf).all()
    ends = TokenChooser([sampling] * 4000, CPU, token_ids=TokenIds(ends=(0, 1)))
    assert torch.equal(ends.score(logits, history, chances=chances), logits)


@given(
    seed=st.integers(0, 1000), words=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3))
)
def test_banned_sequences_are_those_that_transformers_bans(
    seed: int, words: list[list[int]]
) -> None:
    rows, columns = 4, 6
    random = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(1, 6, (rows, columns), generator=random)
    logits = torch.randn(rows, 8, generator=random)
    history = History.of_lengths(token_ids, prompts=[4] * rows, answers=[2] * rows)
    banned = TokenIds(ends=(0,), banned=tuple(map(tuple, words)))
    scores = TokenChooser([GREEDY] * rows, CPU, token_ids=banned).score(logits, history)
    expected = NoBadWordsLogitsProcessor(words)(token_ids, logits) if words else logits
    assert torch.equal(scores, expected)


def test_a_banned_sequence_does_not_begin_in_the_padding() -> None:
    token_ids = torch.tensor([[3, 3, 3], [3, 3, 3]])
    history = History.of_lengths(token_ids, prompts=[1, 3], answers=[0, 0])
    banned = TokenIds(ends=(0,), banned=((3, 3, 5),))
    scores = TokenChooser([GREEDY] * 2, CPU, token_ids=banned).score(torch.zeros(2, 8), history)
    assert scores[:, 5].tolist() == [0, -math.inf]
