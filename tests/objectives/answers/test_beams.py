"""Beam search in batches against transformers' own, one prompt at a time; and drawn beams."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from data.prompts import Prompt
from data.recipes import GREEDY, Sampling
from objectives.answers.beams import decode_by_beams
from objectives.answers.decode import Opening
from objectives.answers.endings import Endings
from objectives.answers.generate import generate
from objectives.answers.request import Request, UntouchedBase
from objectives.models.base import BaseModel
from search_spaces.presets import find_preset

if TYPE_CHECKING:
    from tests.objectives.conftest import ShiftingRouter

BEAMS = Sampling(name="beams", do_sample=False, num_beams=3, max_new_tokens=9)
SAMPLINGS = (
    BEAMS,
    replace(BEAMS, name="many", num_beams=6),
    replace(BEAMS, name="early", early_stopping=True, length_penalty=2.0),
    replace(BEAMS, name="short", length_penalty=-1.5, repetition_penalty=1.4),
    replace(BEAMS, name="at least", min_length=14, no_repeat_ngram_size=2),
)
DRAWN = replace(BEAMS, name="drawn", do_sample=True, temperature=1.3, num_beams=4)


def search_by_transformers(base: BaseModel, request: Request) -> tuple[int, ...]:
    """Return the best beam of one prompt."""
    prompt_ids, sampling = base.encode_prompt(request.prompt.text), request.sampling
    generated = base.model.generate(
        torch.tensor([prompt_ids]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        do_sample=False,
        num_beams=sampling.num_beams,
        length_penalty=sampling.length_penalty,
        early_stopping=sampling.early_stopping,
        repetition_penalty=sampling.repetition_penalty,
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        min_length=sampling.min_length,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=base.pad_id,
        eos_token_id=base.eos_id,
    )
    return tuple(generated[0, len(prompt_ids) :].tolist())


@pytest.mark.parametrize("rows_per_batch", [1, 20, 512])
def test_beams_are_those_of_transformers_one_prompt_at_a_time(
    talking_base: BaseModel,
    shifting_router: ShiftingRouter,
    prompts: tuple[Prompt, ...],
    rows_per_batch: int,
) -> None:
    requests = [
        Request(prompt=prompt, slot=slot, sampling=sampling, seed=0)
        for prompt in prompts[:4]
        for slot in (-1, 0, 2)
        for sampling in SAMPLINGS
    ]
    answered = generate(
        talking_base, requests, router=shifting_router, rows_per_batch=rows_per_batch
    )
    assert len({continuation.token_ids for continuation in answered}) > 8  # they do differ
    endings = Endings(talking_base)
    for request, continuation in zip(requests, answered, strict=True):
        with shifting_router.asking(request.slot):
            expected = search_by_transformers(talking_base, request)
        expected = endings.trim(expected, request.sampling.max_new_tokens)
        assert continuation.token_ids == expected, request.sampling.name


def test_drawn_beams_depend_on_seed_and_prompt_alone(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    requests = [
        Request(prompt=prompt, slot=slot, sampling=sampling, seed=seed)
        for prompt in prompts[:3]
        for slot in (-1, 1)
        for sampling in (DRAWN, BEAMS)
        for seed in (0, 1)
    ]
    together = generate(talking_base, requests, router=shifting_router)
    alone = [generate(talking_base, [r], router=shifting_router)[0] for r in requests]
    assert together == alone
    drawn = {
        (r.prompt.id, r.slot, r.seed): c.token_ids
        for r, c in zip(requests, together, strict=True)
        if r.sampling is DRAWN
    }
    assert any(drawn[prompt, slot, 1] != ids for (prompt, slot, _), ids in drawn.items())


def test_two_beams_of_one_token_are_drawn_like_one_token_at_a_time(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    # Of a single token, whatever is drawn first or second, the likelier one is the better beam.
    sampling = replace(DRAWN, num_beams=2, max_new_tokens=1, temperature=3.0, top_k=3)
    prompt_ids = tuple(talking_base.encode_prompt(prompts[0].text))
    draws = 3000
    uniforms = np.random.default_rng(0).random((draws, 1))
    openings = [
        Opening(prompt_ids=prompt_ids, slot=-1, sampling=sampling, uniforms=row)
        for row in uniforms
    ]
    found = Counter(
        tokens[0]
        for tokens in decode_by_beams(
            talking_base,
            openings,
            router=UntouchedBase(),
            endings=Endings(talking_base),
            rows_per_batch=4096,
        )
    )
    with torch.inference_mode():
        logits = talking_base.model(torch.tensor([prompt_ids])).logits[0, -1]
    scores, tokens = (logits.log_softmax(-1) / 3.0).topk(3)
    first, second, third = scores.softmax(-1).tolist()
    # The likeliest is missing when the two others are drawn, in either order.
    missing = second * third / (1 - second) + third * second / (1 - third)
    assert found[int(tokens[0])] / draws == pytest.approx(1 - missing, abs=0.03)
    assert set(found) <= set(tokens[:2].tolist())
    assert 0 < first < 1


def test_the_preset_with_beams_is_asked_like_any_other(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    preset = replace(find_preset("Verbose (Beam Search)"), max_new_tokens=12, min_length=0)
    requests = [
        Request(prompt=prompts[0], slot=-1, sampling=sampling, seed=3)
        for sampling in (preset, replace(GREEDY, max_new_tokens=12))
    ]
    verbose, greedy = generate(talking_base, requests)
    assert 0 < len(verbose.token_ids) <= 12
    assert greedy == generate(talking_base, [requests[1]])[0]
