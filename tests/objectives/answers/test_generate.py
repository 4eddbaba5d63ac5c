"""Batched generation against transformers' own, and against itself in any other batch."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel

from data.prompts import Prompt, cut_answer
from data.recipes import GREEDY, Sampling
from objectives.answers.generate import generate
from objectives.answers.request import AdapterRouter, Continuation, Request
from objectives.answers.verify import verify_greedy
from objectives.models.base import BaseModel, ModelError, TokenRules

if TYPE_CHECKING:
    from tests.objectives.conftest import ShiftingRouter

SHORT = replace(GREEDY, max_new_tokens=16)
SAMPLINGS = (
    SHORT,
    Sampling(name="hot", temperature=1.4, top_k=20, max_new_tokens=16),
    Sampling(name="narrow", top_p=0.8, repetition_penalty=1.3, max_new_tokens=11),
    Sampling(name="typical", typical_p=0.5, max_new_tokens=7),
    Sampling(name="penalised", do_sample=False, repetition_penalty=1.5, max_new_tokens=16),
)
SLOTS = (-1, 0, 1, 2, 3)
CONTRASTIVE = replace(SHORT, name="contrastive", penalty_alpha=0.6, top_k=4)
BEAMS = replace(SHORT, name="beams", num_beams=3)


def ask(prompt: Prompt, *, slot: int = -1, sampling: Sampling = SHORT, seed: int = 0) -> Request:
    return Request(prompt=prompt, slot=slot, sampling=sampling, seed=seed)


def generate_by_transformers(base: BaseModel, request: Request) -> tuple[int, ...]:
    """Return the tokens of one prompt, unpadded and never stopped early."""
    prompt_ids = base.encode_prompt(request.prompt.text)
    generated = base.model.generate(
        torch.tensor([prompt_ids]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        do_sample=False,
        repetition_penalty=request.sampling.repetition_penalty,
        max_new_tokens=request.sampling.max_new_tokens,
        pad_token_id=base.pad_id,
        eos_token_id=base.eos_id,
    )
    return tuple(generated[0, len(prompt_ids) :].tolist())


@pytest.mark.parametrize("sampling", [SHORT, SAMPLINGS[-1]], ids=lambda sampling: sampling.name)
def test_greedy_answers_are_those_of_transformers_one_at_a_time(
    talking_base: BaseModel,
    shifting_router: ShiftingRouter,
    prompts: tuple[Prompt, ...],
    sampling: Sampling,
) -> None:
    requests = [ask(prompt, slot=slot, sampling=sampling) for slot in SLOTS for prompt in prompts]

    continuations = generate(talking_base, requests, router=shifting_router, rows_per_batch=17)

    ends = set()
    for request, continuation in zip(requests, continuations, strict=True):
        with shifting_router.asking(request.slot):
            expected = generate_by_transformers(talking_base, request)
        tokens = continuation.token_ids
        ends.add(
            "eos"
            if tokens[-1] == talking_base.eos_id
            else "longest"
            if len(tokens) == sampling.max_new_tokens
            else "cut"
        )
        assert tokens == expected[: len(tokens)]
        assert continuation.answer.prompt == request.prompt
        assert continuation.answer.tokens == len(tokens)
        # Stopping early left out nothing that is judged.
        assert continuation.answer.text == cut_answer(talking_base.decode(list(expected)))
    assert ends == {"eos", "longest", "cut"}


def most_common_word(base: BaseModel, requests: list[Request]) -> str:
    """Return the word that is in most answers."""
    answers = [continuation.answer.text for continuation in generate(base, requests)]
    words = Counter(word for text in answers for word in set(text.split()))
    return words.most_common(1)[0][0]


@pytest.mark.parametrize("sampling", [SHORT, CONTRASTIVE, BEAMS], ids=lambda each: each.name)
def test_no_answer_contains_a_bad_word_and_drafts_do_not_bring_it_back(
    talking_base: BaseModel, prompts: tuple[Prompt, ...], sampling: Sampling
) -> None:
    requests = [ask(prompt, sampling=sampling) for prompt in prompts]
    word = most_common_word(talking_base, requests)
    base = replace(talking_base, rules=TokenRules(bad_words=(word,)))
    banned = base.token_ids.banned

    def has_banned(token_ids: tuple[int, ...]) -> bool:
        return any(
            token_ids[at : at + len(sequence)] == sequence
            for sequence in banned
            for at in range(len(token_ids))
        )

    free = generate(talking_base, requests)
    assert any(has_banned(continuation.token_ids) for continuation in free)
    asked = generate(base, requests)
    assert not any(has_banned(continuation.token_ids) for continuation in asked)
    if sampling == SHORT:
        (verified,) = verify_greedy(base, free, [-1], max_new_tokens=SHORT.max_new_tokens)
        assert verified == asked


@pytest.mark.parametrize("sampling", [SHORT, CONTRASTIVE, BEAMS], ids=lambda each: each.name)
def test_a_named_end_ends_an_answer_and_is_no_part_of_it(
    talking_base: BaseModel, prompts: tuple[Prompt, ...], sampling: Sampling
) -> None:
    requests = [ask(prompt, sampling=sampling) for prompt in prompts]
    free = generate(talking_base, requests)
    end = next(c.token_ids[1] for c in free if len(c.token_ids) > 2)
    base = replace(talking_base, rules=TokenRules(end=(talking_base.tokenizer.decode([end]),)))
    assert base.token_ids.ends == (talking_base.eos_id, end)
    asked = generate(base, requests)
    assert any(continuation.token_ids[-1] == end for continuation in asked)
    for continuation in asked:
        assert end not in continuation.token_ids[:-1]
        own = [token for token in continuation.token_ids if token != end]
        assert continuation.answer.text == cut_answer(base.decode(own))


def answer_alone(base: BaseModel, router: AdapterRouter, request: Request) -> Continuation:
    (continuation,) = generate(base, [request], router=router)
    return continuation


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_an_answer_does_not_depend_on_the_batch_or_the_order(
    talking_base: BaseModel,
    shifting_router: ShiftingRouter,
    prompts: tuple[Prompt, ...],
    data: st.DataObject,
) -> None:
    request = st.builds(
        ask,
        st.sampled_from(prompts),
        slot=st.sampled_from(SLOTS),
        sampling=st.sampled_from(SAMPLINGS),
        seed=st.integers(0, 3),
    )
    requests = data.draw(st.lists(request, min_size=1, max_size=12))
    rows_per_batch = data.draw(st.integers(1, 12))

    together = generate(
        talking_base, requests, router=shifting_router, rows_per_batch=rows_per_batch
    )

    assert together == [answer_alone(talking_base, shifting_router, each) for each in requests]


def test_a_sampled_answer_depends_on_the_seed_and_not_on_the_slot_number(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    hot = SAMPLINGS[1]
    # Slot 0's adapter changes nothing, so it must say what the base says.
    base = [ask(prompt, slot=-1, sampling=hot, seed=4) for prompt in prompts]
    slot = [ask(prompt, slot=0, sampling=hot, seed=4) for prompt in prompts]
    other = [ask(prompt, slot=-1, sampling=hot, seed=5) for prompt in prompts]

    continuations = generate(talking_base, [*base, *slot, *other], router=shifting_router)

    by_base, by_slot, by_other_seed = (continuations[start : start + 12] for start in (0, 12, 24))
    assert by_base == by_slot
    assert by_base != by_other_seed


def test_the_same_question_is_computed_once_and_answered_for_each_who_asked(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    prompt = prompts[0]
    reworded = replace(prompt, subject="another fact with the same question")
    requests = [ask(prompt, seed=1), ask(reworded, seed=2), ask(prompt, slot=3)]

    continuations = generate(talking_base, requests, router=shifting_router)

    tokens = len(talking_base.encode_prompt(prompt.text))
    assert shifting_router.passes[0] == 2 * tokens
    assert continuations[0].token_ids == continuations[1].token_ids
    assert continuations[1].answer.prompt == reworded
    assert continuations[2].token_ids != continuations[0].token_ids


def test_a_prompt_under_several_samplings_is_read_once(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    requests = [ask(prompts[0], slot=2, sampling=sampling) for sampling in SAMPLINGS]

    generate(talking_base, requests, router=shifting_router)

    tokens = len(talking_base.encode_prompt(prompts[0].text))
    assert shifting_router.passes[:2] == [tokens, 5]


def test_finished_rows_leave_the_batch(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    one_token = replace(GREEDY, max_new_tokens=1)
    one, *others = (replace(prompts[0], text=f" w{word} w1") for word in range(2, 6))
    brief = [ask(prompt, sampling=one_token) for prompt in others]

    generate(talking_base, [*brief, ask(one)], router=shifting_router)

    # Three tokens each, of which all share the first. Three of four rows end with the token that
    # is chosen after the prompts were read.
    assert shifting_router.passes[:3] == [1 + 4 * 2, 1, 1]


def test_rows_join_those_that_go_on(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    requests = [
        ask(replace(prompts[0], text=f" w{word} w1"), sampling=sampling, slot=slot)
        for word in range(2, 10)
        for slot in (0, 2)
        for sampling in SAMPLINGS
    ]

    crowded = generate(talking_base, requests, router=shifting_router, rows_per_batch=10)

    passes = len(shifting_router.passes)
    shifting_router.passes.clear()
    one_after_another = [
        continuation
        for start in range(0, len(requests), 5)
        for continuation in generate(
            talking_base, requests[start : start + 5], router=shifting_router
        )
    ]
    assert crowded == one_after_another
    assert passes < len(shifting_router.passes) / 1.5


def test_nothing_asked_is_nothing_answered(talking_base: BaseModel) -> None:
    assert generate(talking_base, []) == []


def test_a_row_of_nan_leaves_its_neighbours_alone(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    shifting_router.shifts[2] = torch.nan
    requests = [
        ask(p, slot=slot, sampling=s) for p in prompts[:4] for slot in (1, 2, 3) for s in SAMPLINGS
    ]
    healthy = [request for request in requests if request.slot != 2]

    together = generate(talking_base, requests, router=shifting_router)

    expected = generate(talking_base, healthy, router=shifting_router)
    assert [c for c, r in zip(together, requests, strict=True) if r.slot != 2] == expected


def test_a_model_with_learned_positions_outlives_rows_that_fill_its_context(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    config = GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=16,
        vocab_size=len(talking_base.tokenizer),
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    base = replace(talking_base, model=model)
    # The first row ends at position 1 + 10 + 4 of 16; the others generate eight tokens more.
    long = ask(replace(prompts[0], text=" w1" * 10), sampling=replace(GREEDY, max_new_tokens=4))
    requests = [
        long,
        *(
            ask(replace(prompts[0], text=f" w{word}"), sampling=replace(GREEDY, max_new_tokens=12))
            for word in range(2, 8)
        ),
    ]

    continuations = generate(base, requests)

    assert [c.token_ids for c in continuations] == [
        generate_by_transformers(base, request)[: len(c.token_ids)]
        for request, c in zip(requests, continuations, strict=True)
    ]


def test_an_answer_that_might_not_fit_is_refused_before_anything_is_read(
    talking_base: BaseModel, shifting_router: ShiftingRouter, prompts: tuple[Prompt, ...]
) -> None:
    tokens = len(talking_base.encode_prompt(prompts[0].text))
    fits = replace(GREEDY, max_new_tokens=48 - tokens)
    too_long = replace(GREEDY, max_new_tokens=49 - tokens)

    generate(talking_base, [ask(prompts[0], sampling=fits)])
    with pytest.raises(ModelError) as refused:
        generate(
            talking_base,
            [ask(prompts[1]), ask(prompts[0], sampling=too_long)],
            router=shifting_router,
        )

    message = str(refused.value)
    for named in (repr(prompts[0].text), f"{tokens} tokens", f"{49 - tokens},", "the 48 tokens"):
        assert named in message
    assert shifting_router.passes == []


def test_a_prompt_without_tokens_is_refused(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    without_bos = copy.deepcopy(talking_base.tokenizer)
    without_bos.backend_tokenizer.post_processor = processors.Sequence([])
    base = replace(talking_base, tokenizer=without_bos)

    with pytest.raises(ModelError, match="'' has no tokens"):
        generate(base, [ask(replace(prompts[0], text=""))])


def test_an_adapter_without_a_router_is_refused(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    with pytest.raises(ValueError, match="slot: 2 was asked without a router"):
        generate(talking_base, [ask(prompts[0], slot=2)])


def test_a_batch_of_no_rows_is_refused(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    with pytest.raises(ValueError, match="rows_per_batch: 0"):
        generate(talking_base, [ask(prompts[0])], rows_per_batch=0)
