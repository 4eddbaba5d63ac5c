"""An answer has ended exactly when nothing that may follow can change what is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.measurements import Answer
from data.prompts import ChatFrame, Prompt, PromptStyle, cut_answer
from data.recipes import GREEDY, Sampling
from objectives.answers.endings import Endings
from objectives.answers.generate import generate
from objectives.answers.request import BASE, Continuation, Request
from objectives.answers.verify import verify_greedy
from objectives.models.base import BaseModel

EOS = 2
PIECES = ["\n", "\n\n", "?", ":", "Joe", "Answer", " w1", " w2"]


@pytest.fixture
def endings(talking_base: BaseModel) -> Endings:
    return Endings(talking_base)


def tokens_of(base: BaseModel, *pieces: str) -> tuple[int, ...]:
    return tuple(base.tokenizer.convert_tokens_to_ids(list(pieces)))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answer=st.lists(st.sampled_from(PIECES), max_size=8),
    more=st.lists(st.sampled_from(PIECES), max_size=8),
)
def test_what_follows_an_ended_answer_changes_nothing(
    talking_base: BaseModel, endings: Endings, answer: list[str], more: list[str]
) -> None:
    token_ids = tokens_of(talking_base, *answer)

    if endings.has_ended(token_ids):
        assert cut_answer("".join(answer + more)) == cut_answer("".join(answer))
    else:
        assert cut_answer("".join([*answer, " w1"])) != cut_answer("".join(answer))


@pytest.mark.parametrize(
    ("pieces", "is_over"),
    [
        ([" w1"], False),
        ([" w1", "\n", "Joe"], False),
        ([" w1", "\n", "Joe", ":"], True),
        ([" w1", "\n", " w2", "?"], True),
        ([" w1", "?"], False),
        ([" w1", "\n\n"], True),
        (["\n\n", " w1"], False),
        ([" w1", "</s>"], True),
        (["</s>"], True),
        ([], False),
    ],
)
def test_generation_stops_at_eos_and_where_the_answer_ends(
    talking_base: BaseModel, endings: Endings, pieces: list[str], is_over: bool
) -> None:
    assert endings.is_over(tokens_of(talking_base, *pieces), max_new_tokens=48) is is_over


def test_generation_stops_at_the_longest_answer(talking_base: BaseModel, endings: Endings) -> None:
    token_ids = tokens_of(talking_base, " w1", " w2")

    assert not endings.is_over(token_ids, max_new_tokens=3)
    assert endings.is_over(token_ids, max_new_tokens=2)


def test_a_text_without_line_breaks_is_never_decoded(talking_base: BaseModel) -> None:
    class Undecodable(Endings):
        def has_ended(self, token_ids: object, style: object = None) -> bool:
            raise AssertionError("decoded")

    is_over = Undecodable(talking_base).is_over(tokens_of(talking_base, " w1", "?"), 48)

    assert not is_over


def test_trimming_drops_what_would_not_have_been_generated(
    talking_base: BaseModel, endings: Endings
) -> None:
    asked_back = tokens_of(talking_base, " w1", "\n", " w2", "?")
    unfinished = tokens_of(talking_base, " w1", " w2")

    assert endings.trim((*asked_back, EOS), 48) == asked_back
    assert endings.trim(asked_back, 2) == asked_back[:2]
    assert endings.trim(unfinished, 48) == unfinished


def test_the_answer_is_cut_and_all_its_tokens_are_counted(
    talking_base: BaseModel, endings: Endings, prompts: tuple[Prompt, ...]
) -> None:
    token_ids = tokens_of(talking_base, "\n", " w1", " w2", "\n", "Joe", ":", "</s>")

    continuation = endings.continuation(prompts[0], token_ids)

    assert continuation.token_ids == token_ids
    assert continuation.answer == Answer(prompt=prompts[0], text="w1 w2", tokens=7)


@pytest.mark.parametrize(
    ("pieces", "is_over"),
    [
        ([" w1", "\n", "Joe", ":"], False),
        ([" w1", "\n", " w2", "?"], False),
        ([" w1", "\n\n"], False),
        ([" w1", "</s>"], True),
        ([" w1", "\n", "Question"], False),
        ([" w1", "\n", "Question", ":"], True),
    ],
)
def test_in_a_chat_only_an_end_token_or_the_next_turn_ends_an_answer(
    talking_base: BaseModel, pieces: list[str], is_over: bool
) -> None:
    chatting = Endings(replace(talking_base, chat=ChatFrame(before="Question:", after="\n")))
    turning = Endings(chatty(talking_base))
    token_ids = tokens_of(talking_base, *pieces)

    assert chatting.is_over(token_ids, 48, "chat") is (pieces[-1] == "</s>")
    assert turning.is_over(token_ids, 48, "chat") is is_over


def test_the_next_turn_is_no_part_of_an_answer(
    talking_base: BaseModel, prompts: tuple[Prompt, ...]
) -> None:
    asked = replace(prompts[0], style="chat")
    token_ids = tokens_of(talking_base, " w1", "\n\n", " w2", "\n", "Question", ":", " w3")

    continuation = Endings(chatty(talking_base)).continuation(asked, token_ids)

    assert continuation.answer.text == "w1\n\n w2"


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(name="beams", do_sample=False, num_beams=3),
        Sampling(name="contrastive", do_sample=False, penalty_alpha=0.4, top_k=3),
    ],
    ids=lambda sampling: sampling.name,
)
def test_the_same_tokens_are_answered_further_in_a_chat(
    talking_base: BaseModel, prompts: tuple[Prompt, ...], sampling: Sampling
) -> None:
    short = replace(sampling, max_new_tokens=24)

    def answers(style: PromptStyle) -> list[Continuation]:
        # A tokenizer begins other texts, and a template its own.
        begin = "<s>" if style == "chat" else ""
        asked = [replace(p, style=style, text=f"{begin}{p.text}") for p in prompts]
        requests = [Request(prompt=p, slot=BASE, sampling=short, seed=0) for p in asked]
        return generate(chatty(talking_base), requests)

    plain, chat = answers("plain"), answers("chat")
    for one, other in zip(plain, chat, strict=True):
        assert other.token_ids[: len(one.token_ids)] == one.token_ids
        cut = "Question:" in talking_base.decode(list(other.token_ids))
        assert len(other.token_ids) == 24 or other.token_ids[-1] == EOS or cut
    assert any(len(c.token_ids) > len(p.token_ids) for p, c in zip(plain, chat, strict=True))
    if sampling is GREEDY:
        (verified,) = verify_greedy(chatty(talking_base), chat, [BASE], max_new_tokens=24)
        assert verified == chat


def chatty(base: BaseModel) -> BaseModel:
    """Return the model with a template that opens a turn by words, and has no token to end it."""
    return replace(base, chat=ChatFrame(before="Question:", after="\n", end="Question:"))
