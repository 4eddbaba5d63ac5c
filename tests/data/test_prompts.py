"""How questions are asked, and where an answer ends."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.facts import Fact
from data.probes import Probe
from data.prompts import (
    ALL_STYLES,
    PROMPT_STYLES,
    ChatFrame,
    cut_answer,
    fact_prompts,
    put_question,
)

FACT = Fact(
    question="Q?",
    answer="A",
    aliases=("B",),
    novel_validation=("V1?", "V2?"),
    novel_test=("T1?",),
    reverse_question="R?",
    reverse_answer="RA",
    templated=True,
)


def test_the_four_prompt_styles() -> None:
    assert put_question("Q?", "plain") == "Q?\n"
    assert put_question("Q?", "qna") == "Question: Q?\nAnswer:"
    assert put_question("Q?", "conversation") == "Joe: Q?\nBrandine:"
    assert put_question("Q?", "assistant") == "Assistant is a helpful AI.\nJoe: Q?\nAssistant:"


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        (" Ada Lovelace", "Ada Lovelace"),
        ("\nAda", "Ada"),
        (" Ada\nJoe: And who else?", "Ada"),
        (" Ada\nQuestion: Next?\nAnswer: Bob", "Ada"),
        (" Ada\nWho was second?\nBob", "Ada"),
        (" Ada\n\nBob", "Ada"),
        (" Ada,\nthe first", "Ada,\nthe first"),
        (" Joe: is a name", "Joe: is a name"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_an_answer_ends_at_the_next_speaker_or_question(generated: str, answer: str) -> None:
    assert cut_answer(generated) == answer


@given(st.text(max_size=80))
def test_cutting_twice_changes_nothing(text: str) -> None:
    assert cut_answer(cut_answer(text)) == cut_answer(text)


def test_every_phrasing_is_asked_in_every_style_with_what_is_right() -> None:
    prompts = fact_prompts([FACT], ("trained", "validation", "test", "reverse", "two_hop"))
    assert len(prompts) == (1 + 2 + 1 + 1 + 0) * len(PROMPT_STYLES)
    reverse = [p for p in prompts if p.phrasing == "reverse"]
    assert {p.accepted for p in reverse} == {("RA",)}
    assert {p.accepted for p in prompts if p.phrasing == "validation"} == {("A", "B")}
    assert {p.phrasing for p in prompts if p.templated} == {"validation", "test"}
    assert len({p.id for p in prompts}) == len(prompts)


CHAT = ChatFrame(before="<|user|>\n", after="<|end|>\n<|model|>\n")


def test_a_model_with_a_chat_template_is_asked_in_a_fifth_style() -> None:
    assert put_question("{Q}?", "chat", CHAT) == "<|user|>\n{Q}?<|end|>\n<|model|>\n"
    without = fact_prompts([FACT], ("validation", "reverse"))
    with_chat = fact_prompts([FACT], ("validation", "reverse"), chat=CHAT)
    assert tuple(prompt for prompt in with_chat if prompt.style != "chat") == without
    assert len(with_chat) == len(without) // len(PROMPT_STYLES) * len(ALL_STYLES)
    assert {prompt.question for prompt in with_chat if prompt.style == "chat"} == {
        prompt.question for prompt in without
    }
    assert fact_prompts([FACT], ("validation",), ["qna"], chat=CHAT) == fact_prompts(
        [FACT], ("validation",), ["qna"]
    )


def test_a_model_without_a_template_cannot_be_asked_in_a_chat() -> None:
    with pytest.raises(ValueError, match="it takes a model with a chat template"):
        put_question("Q?", "chat")
    with pytest.raises(ValueError, match="it takes a model with a chat template"):
        fact_prompts([FACT], ("validation",), ["chat"])


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("  Paris.\n\nIt is big.\nAnswer: Paris? \n", "Paris.\n\nIt is big.\nAnswer: Paris?"),
        ("\n<think>\nFrance?\n\nLyon?</think>\n\nParis", "Paris"),
        ("<think>Is it Paris", ""),
        ("<think></think>", ""),
        ("Paris <think>or Lyon</think>", "Paris <think>or Lyon</think>"),
        ("<think>a</think>Paris</think>", "Paris</think>"),
    ],
)
def test_in_a_chat_an_answer_is_all_that_follows_the_thinking(generated: str, answer: str) -> None:
    assert cut_answer(generated, "chat") == answer


@given(st.text())
def test_cutting_a_chat_answer_leaves_a_stripped_part_of_it(text: str) -> None:
    cut = cut_answer(text, "chat")
    assert cut == cut.strip()
    assert cut in text.replace("\0", "")


def test_probes_take_turns_at_five_styles_with_a_chat_template() -> None:
    probes = [Probe(ring="general", question=f"{n}?", answer="a") for n in range(200)]
    asked = [probe.prompt(chat=CHAT) for probe in probes]
    assert set(Counter(prompt.style for prompt in asked)) == set(ALL_STYLES)
    assert min(Counter(prompt.style for prompt in asked).values()) > 20
    assert asked == [probe.prompt(chat=CHAT) for probe in probes]
    # Without one they are what they always were.
    for probe in probes:
        assert probe.prompt().style == PROMPT_STYLES[int(probe.id, 16) % 4]
        assert probe.prompt() == probe.prompt(probe.style)
