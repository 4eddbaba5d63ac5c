"""Each processor against transformers' own, row by row, and draws against their probabilities."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from data.recipes import GREEDY, Sampling
from objectives.answers.sampling import TokenChooser, draw_tokens, draw_uniforms

CPU = torch.device("cpu")
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


def random_history(rows: int) -> Tensor:
    return torch.randint(VOCABULARY, (rows, 12), generator=torch.Generator().manual_seed(5))


def score_by_transformers(logits: Tensor, history: Tensor, sampling: Sampling) -> Tensor:
    """Return one row's scores, by the processors that `model.generate` would line up for it."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.do_sample:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.typical_p < 1:
            processors.append(TypicalLogitsWarper(sampling.typical_p))
    scores: Tensor = processors(history[None], logits[None])[0]
    return scores


@pytest.mark.parametrize("processor", SETTINGS)
def test_a_batch_of_mixed_settings_scores_every_row_as_transformers_does(processor: str) -> None:
    samplings = SETTINGS[processor] * 3
    logits, history = random_logits(len(samplings)), random_history(len(samplings))

    scores = TokenChooser(samplings, CPU).score(logits, history)

    for row, sampling in enumerate(samplings):
        expected = score_by_transformers(logits[row], history[row], sampling)
        torch.testing.assert_close(scores[row], expected, rtol=0, atol=0)


def test_a_setting_that_all_rows_use_scores_as_in_a_mixed_batch() -> None:
    sampling = SETTINGS["all together"][2]
    logits, history = random_logits(4), random_history(4)

    alike = TokenChooser([sampling] * 4, CPU).score(logits, history)
    mixed = TokenChooser([sampling, GREEDY, sampling, GREEDY], CPU).score(logits, history)

    assert torch.equal(alike[[0, 2]], mixed[[0, 2]])


def test_greedy_takes_the_likeliest_token_after_the_repetition_penalty() -> None:
    logits = torch.tensor([[2.0, 3.0, 1.0], [2.0, 3.0, 1.0], [-1.0, -1.5, -9.0]])
    history = torch.tensor([[1, 1], [1, 1], [0, 0]])
    settings = [GREEDY, PENALISED_GREEDY, PENALISED_GREEDY]

    tokens = TokenChooser(settings, CPU).choose(logits, history, torch.zeros(3))

    # Token 1 falls to 3 / 1.7 = 1.76 < 2, and token 0 to -1 * 1.7 = -1.7 < -1.5.
    assert tokens.tolist() == [1, 0, 1]


def test_half_precision_logits_are_scored_in_single_precision() -> None:
    chooser = TokenChooser([Sampling(name="t", temperature=0.7)], CPU)
    logits = random_logits(1).bfloat16()

    scores = chooser.score(logits, random_history(1))

    torch.testing.assert_close(scores, logits.float() / 0.7, rtol=0, atol=0)


def test_draws_are_as_frequent_as_transformers_scores_say() -> None:
    sampling = Sampling(name="hot", temperature=1.5, top_k=12, top_p=0.95)
    logits, history = random_logits(1), random_history(1)
    probabilities = score_by_transformers(logits[0], history[0], sampling).double().softmax(dim=0)
    draws = 20_000
    uniforms = torch.from_numpy(draw_uniforms(2023, "prompt", draws)).float()

    tokens = TokenChooser([sampling] * draws, CPU).choose(
        logits.expand(draws, -1), history.expand(draws, -1), uniforms
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

    expected = TokenChooser(settings, CPU).choose(logits, history, uniforms).tolist()
    tokens = TokenChooser(settings, CPU).choose(broken, history, uniforms).tolist()

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
