"""A model on several devices gives the answers that it gives on one, by every decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from data.prompts import Prompt
from data.recipes import GREEDY, Sampling
from objectives.answers.generate import generate
from objectives.answers.request import BASE, Request
from objectives.answers.verify import verify_greedy
from objectives.measures.drift import mean_cross_entropy_nats
from objectives.models.base import BaseModel
from objectives.models.passes.reading import reads_packed
from tests.objectives.pretend_devices import PretendDevices, spread

SHORT = replace(GREEDY, max_new_tokens=7)
SAMPLINGS = (
    SHORT,
    Sampling(name="hot", temperature=1.4, top_k=20, max_new_tokens=7),
    Sampling(name="penalised", do_sample=False, repetition_penalty=1.5, max_new_tokens=7),
    Sampling(name="mirostat", mirostat_tau=3.0, max_new_tokens=7),
    replace(SHORT, name="contrastive", penalty_alpha=0.6, top_k=4),
    replace(SHORT, name="beams", num_beams=3),
)
ONE_GPU = {"": "cuda:0"}
PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head")
TWO_GPUS = dict(zip(PARTS, ("cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:1"), strict=True))
TWO_GPUS |= {"model.rotary_emb": "cuda:1"}
WITH_MAIN_MEMORY = TWO_GPUS | {"model.layers.1": "cpu", "lm_head": "cpu"}


@pytest.fixture(autouse=True)
def pretended() -> Iterator[None]:
    with PretendDevices():
        yield


def ask(base: BaseModel, prompts: tuple[Prompt, ...]) -> list[tuple[int, ...]]:
    requests = [
        Request(prompt=prompt, slot=BASE, sampling=sampling, seed=5)
        for sampling in SAMPLINGS
        for prompt in prompts[:5]
    ]
    return [each.token_ids for each in generate(base, requests, rows_per_batch=4)]


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        pytest.param("talking_base", TWO_GPUS, id="two GPUs"),
        pytest.param("windowed_base", TWO_GPUS, id="two GPUs, sliding window"),
        pytest.param("talking_base", WITH_MAIN_MEMORY, id="main memory"),
    ],
)
def test_answers_are_those_of_one_device(
    kind: str,
    places: dict[str, str],
    prompts: tuple[Prompt, ...],
    request: pytest.FixtureRequest,
) -> None:
    shared: BaseModel = request.getfixturevalue(kind)
    one, several = spread(shared, ONE_GPU), spread(shared, places)
    assert reads_packed(several.model) == reads_packed(one.model)
    assert ask(several, prompts) == ask(one, prompts)


def test_verified_answers_and_drift_are_those_of_one_device(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    one, two = spread(talking_base, ONE_GPU), spread(talking_base, TWO_GPUS)
    references = generate(
        one, [Request(prompt=each, slot=BASE, sampling=SHORT, seed=0) for each in prompts]
    )
    # Every other reference is of another prompt, so that drafts are rejected, too.
    guesses = [
        replace(each, token_ids=references[place // 2].token_ids)
        for place, each in enumerate(references)
    ]
    (verified,) = verify_greedy(two, guesses, [BASE], max_new_tokens=7, rows_per_batch=5)
    assert [each.token_ids for each in verified] == [each.token_ids for each in references]
    texts = [prompt.text for prompt in prompts]
    assert mean_cross_entropy_nats(one, texts, slots=[BASE]) == mean_cross_entropy_nats(
        two, texts, slots=[BASE]
    )
