"""Verified greedy answers are the generated ones, for less work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.prompts import Prompt
from data.recipes import GREEDY
from objectives.answers import decode
from objectives.answers.endings import Endings
from objectives.answers.generate import generate
from objectives.answers.request import AdapterRouter, Continuation, Request
from objectives.answers.verify import verify_greedy
from objectives.models.base import BaseModel, ModelError

if TYPE_CHECKING:
    from tests.objectives.conftest import ShiftingRouter

EOS = 2
LONGEST = 16
SLOTS = (-1, 0, 1, 2, 3)


def generate_greedily(
    base: BaseModel, prompts: tuple[Prompt, ...], slot: int, router: AdapterRouter
) -> list[Continuation]:
    greedy = replace(GREEDY, max_new_tokens=LONGEST)
    requests = [Request(prompt=p, slot=slot, sampling=greedy, seed=0) for p in prompts]
    return generate(base, requests, router=router)


def test_every_adapter_gets_the_answers_that_generation_gives(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    references = generate_greedily(talking_base, prompts, -1, shifting_router)

    verified = verify_greedy(
        talking_base,
        references,
        SLOTS,
        router=shifting_router,
        max_new_tokens=LONGEST,
        rows_per_batch=13,
    )

    generated = [generate_greedily(talking_base, prompts, s, shifting_router) for s in SLOTS]
    assert verified == generated
    # The strong adapters differ from the base somewhere, or this would show nothing.
    changed = [
        sum(a != b for a, b in zip(answers, references, strict=True)) for answers in generated
    ]
    assert changed[:2] == [0, 0]
    assert changed[4] > changed[3] > 0


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_wrong_reference_costs_time_and_never_changes_the_answer(
    talking_base: BaseModel,
    shifting_router: ShiftingRouter,
    prompts: tuple[Prompt, ...],
    data: st.DataObject,
) -> None:
    slot = data.draw(st.sampled_from(SLOTS))
    right = generate_greedily(talking_base, prompts[:4], slot, shifting_router)
    # References that begin right and then go on too long, stop too early, or go astray.
    tails = st.lists(st.integers(2, len(talking_base.tokenizer) - 1), max_size=20)
    endings = Endings(talking_base)
    references = []
    for continuation in right:
        kept = data.draw(st.integers(0, len(continuation.token_ids)))
        token_ids = (*continuation.token_ids[:kept], *data.draw(tails))
        references.append(endings.continuation(continuation.answer.prompt, token_ids or (EOS,)))

    (verified,) = verify_greedy(
        talking_base, references, [slot], router=shifting_router, max_new_tokens=LONGEST
    )

    assert verified == right


def test_an_adapter_that_changes_nothing_costs_one_pass(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    references = generate_greedily(talking_base, prompts, -1, shifting_router)
    shifting_router.passes.clear()

    (verified,) = verify_greedy(
        talking_base, references, [0], router=shifting_router, max_new_tokens=LONGEST
    )

    # Rows of up to 15 tokens, and longer ones.
    assert len(shifting_router.passes) == 2
    assert all(mine is theirs for mine, theirs in zip(verified, references, strict=True))


def test_an_adapter_that_changes_much_costs_no_more_passes_than_generation(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    references = generate_greedily(talking_base, prompts, -1, shifting_router)
    shifting_router.passes.clear()
    generate_greedily(talking_base, prompts, 3, shifting_router)
    generation = list(shifting_router.passes)
    shifting_router.passes.clear()

    verify_greedy(talking_base, references, [3], router=shifting_router, max_new_tokens=LONGEST)

    assert len(shifting_router.passes) <= len(generation)


def test_a_model_that_cannot_forget_a_wrong_guess_is_not_given_any(
    windowed_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    base = windowed_base
    shifts = 3 * torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
    router = type(shifting_router)(base, shifts)
    references = generate_greedily(base, prompts, -1, router)

    (verified,) = verify_greedy(base, references, [0], router=router, max_new_tokens=LONGEST)

    assert verified == generate_greedily(base, prompts, 0, router)
    assert verified != references


def test_a_large_vocabulary_makes_smaller_batches_and_the_same_answers(
    talking_base: BaseModel,
    shifting_router: ShiftingRouter,
    prompts: tuple[Prompt, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    references = generate_greedily(talking_base, prompts, -1, shifting_router)
    vocabulary = len(talking_base.tokenizer)
    # A draft leaves out the last token, and the logits after the prompt are needed too.
    logits_per_row = max(len(r.token_ids) - 1 + 1 for r in references) * vocabulary
    monkeypatch.setattr(decode, "_LOGITS_PER_PASS", 5 * logits_per_row)
    shifting_router.passes.clear()

    (verified,) = verify_greedy(
        talking_base, references, [0], router=shifting_router, max_new_tokens=LONGEST
    )

    # Half of the five rows that fit begin at once: ten short rows by threes, and two long ones.
    assert len(shifting_router.passes) == 4 + 1
    assert verified == references


def test_no_references_give_no_answers(talking_base: BaseModel) -> None:
    assert verify_greedy(talking_base, [], [-1, -1]) == [[], []]


def test_a_reference_whose_answer_might_not_fit_is_refused(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    references = generate_greedily(talking_base, prompts, -1, shifting_router)

    with pytest.raises(ModelError, match="its answer may have 47"):
        verify_greedy(talking_base, references, [-1], max_new_tokens=47)
