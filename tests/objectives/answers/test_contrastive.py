"""Contrastive search in batches against its definition, one row at a time and without a cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import RepetitionPenaltyLogitsProcessor

from data.prompts import Prompt
from data.recipes import GREEDY, Sampling
from objectives.answers.generate import generate
from objectives.answers.request import Request
from objectives.models.base import BaseModel
from search_spaces.presets import find_preset

if TYPE_CHECKING:
    from tests.objectives.conftest import ShiftingRouter

SAMPLINGS = (
    replace(find_preset("Contrastive Search"), max_new_tokens=9),
    replace(find_preset("Contrastive Search (old)"), max_new_tokens=6),
    Sampling(
        name="six",
        do_sample=False,
        penalty_alpha=0.9,
        top_k=6,
        repetition_penalty=1.4,
        max_new_tokens=7,
    ),
)


def search_by_definition(base: BaseModel, prompt_ids: list[int], sampling: Sampling) -> list[int]:
    """Return every token up to the longest answer: nothing is batched, cached or stopped early."""
    penalise = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
    ids = list(prompt_ids)
    for _ in range(sampling.max_new_tokens):
        context = base.model(torch.tensor([ids]), output_hidden_states=True)
        scores = penalise(torch.tensor([ids]), context.logits[:, -1])
        shares, candidates = scores.softmax(-1)[0].topk(sampling.top_k)
        merits = []
        for share, candidate in zip(shares.tolist(), candidates.tolist(), strict=True):
            read = base.model(torch.tensor([[*ids, candidate]]), output_hidden_states=True)
            *before, last = read.hidden_states[-1][0]
            likeness = max(float(cosine_similarity(last, state, dim=0)) for state in before)
            merits.append((1 - sampling.penalty_alpha) * share - sampling.penalty_alpha * likeness)
        ids.append(int(candidates[merits.index(max(merits))]))
    return ids[len(prompt_ids) :]


@pytest.mark.parametrize("rows_per_batch", [1, 7, 512])
def test_every_row_says_what_it_would_say_alone(
    talking_base: BaseModel,
    shifting_router: ShiftingRouter,
    prompts: tuple[Prompt, ...],
    rows_per_batch: int,
) -> None:
    requests = [
        Request(prompt=prompt, slot=slot, sampling=sampling, seed=0)
        for prompt in prompts[:4]
        for slot in (-1, 1, 3)
        for sampling in SAMPLINGS
    ]
    answered = generate(
        talking_base, requests, router=shifting_router, rows_per_batch=rows_per_batch
    )
    assert len({continuation.token_ids for continuation in answered}) > 6  # they do differ
    with torch.inference_mode():
        for request, continuation in zip(requests, answered, strict=True):
            prompt_ids = talking_base.encode_prompt(request.prompt.text)
            with shifting_router.asking(request.slot):
                expected = search_by_definition(talking_base, prompt_ids, request.sampling)
            assert list(continuation.token_ids) == expected[: len(continuation.token_ids)]


def test_rows_of_both_kinds_keep_their_places(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    short = replace(GREEDY, max_new_tokens=6)
    requests = [
        Request(prompt=prompt, slot=-1, sampling=sampling, seed=0)
        for prompt in prompts[:3]
        for sampling in (short, SAMPLINGS[2], replace(short, name="again"))
    ]
    together = generate(talking_base, requests)
    assert together == [generate(talking_base, [request])[0] for request in requests]
    assert together[0].token_ids != together[1].token_ids


def test_without_a_penalty_for_likeness_it_would_be_greedy(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    almost_none = replace(SAMPLINGS[0], penalty_alpha=1e-9, max_new_tokens=8)
    for prompt in prompts[:4]:
        request = Request(prompt=prompt, slot=-1, sampling=almost_none, seed=0)
        greedy = replace(request, sampling=replace(GREEDY, max_new_tokens=8))
        said, likeliest = generate(talking_base, [request, greedy])
        assert said.token_ids == likeliest.token_ids
