"""The divergence from the base against torch's own, one answer at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn.functional import kl_div

from data.prompts import Prompt
from data.recipes import GREEDY
from objectives.answers.generate import generate
from objectives.answers.request import Continuation, Request
from objectives.measures import divergence
from objectives.measures.divergence import mean_kl_nats
from objectives.models.base import BaseModel

if TYPE_CHECKING:
    from tests.objectives.conftest import ShiftingRouter


@pytest.fixture
def references(talking_base: BaseModel, prompts: tuple[Prompt, ...]) -> list[Continuation]:
    requests = [
        Request(prompt=p, slot=-1, sampling=replace(GREEDY, max_new_tokens=12), seed=0)
        for p in prompts[:5]
    ]
    return generate(talking_base, requests)


def logs_after_prompt(base: BaseModel, reference: Continuation) -> torch.Tensor:
    prompt = base.encode_prompt(reference.answer.prompt.text)
    ids = torch.tensor([prompt + list(reference.token_ids[:-1])])
    logits: torch.Tensor = base.model(ids).logits
    return logits[0, len(prompt) - 1 :].log_softmax(dim=-1)


def test_it_is_the_token_mean_of_torchs_divergence(
    talking_base: BaseModel, shifting_router: ShiftingRouter, references: list[Continuation]
) -> None:
    mean = mean_kl_nats(talking_base, references, slot=2, router=shifting_router)
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for reference in references:
            before = logs_after_prompt(talking_base, reference)
            with shifting_router.asking(2):
                after = logs_after_prompt(talking_base, reference)
            total += float(kl_div(after, before, log_target=True, reduction="sum"))
            tokens += len(reference.token_ids)
    assert mean == pytest.approx(total / tokens, rel=1e-4)
    assert total > 0


def test_the_base_does_not_diverge_from_itself_and_batches_change_nothing(
    talking_base: BaseModel,
    shifting_router: ShiftingRouter,
    references: list[Continuation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mean_kl_nats(talking_base, references, slot=-1, router=shifting_router) == 0
    whole = mean_kl_nats(talking_base, references, slot=1, router=shifting_router)
    monkeypatch.setattr(divergence, "_ROWS_PER_BATCH", 1)
    alone = mean_kl_nats(talking_base, references, slot=1, router=shifting_router)
    assert alone == pytest.approx(whole, rel=1e-4)


def test_without_answers_it_is_not_measured(
    talking_base: BaseModel, shifting_router: ShiftingRouter
) -> None:
    assert mean_kl_nats(talking_base, [], slot=1, router=shifting_router) is None
