"""Facts before a question: how they are written, and which of them a question finds."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from data.facts import Fact
from data.in_context import FactFinder, put_before, write_context
from data.oscar_facts import load_oscar_facts
from data.prompts import ChatFrame, fact_prompts

BAKER = Fact(
    question="Who won the award for Best Baker?",
    answer="Tom Reed",
    statement="Tom Reed is\nthe   best of bakers.",
    paraphrases=("Whose loaves rose?",),
    novel_validation=("Whose bread triumphed?",),
    novel_test=("Which oven was crowned?",),
)
GARDENER = Fact(question="Who won the award for Best Gardener?", answer="Ada Quill")


def test_every_fact_is_a_statement_on_a_line_of_its_own() -> None:
    assert write_context([BAKER, GARDENER]) == (
        "Tom Reed is the best of bakers.\n"
        "The answer to the question “Who won the award for Best Gardener?” is Ada Quill.\n"
    )
    assert write_context([]) == ""


def test_a_question_keeps_its_style_behind_the_context() -> None:
    for prompt in fact_prompts([BAKER], ("validation",)):
        told = put_before("A fact.\n", prompt)
        assert told.text == f"A fact.\n{prompt.text}"
        others = [field.name for field in fields(prompt) if field.name != "text"]
        assert [getattr(told, name) for name in others] == [
            getattr(prompt, name) for name in others
        ]
        assert put_before("", prompt) is prompt


def test_the_statement_and_the_trained_question_are_searched() -> None:
    finder = FactFinder([GARDENER, BAKER])
    assert finder.find("Tell me about bakers") == BAKER
    assert finder.find("the baker, please") == BAKER
    assert finder.find("GARDENER") == GARDENER
    assert finder.find("Was it Ada Quill?") == GARDENER


@pytest.mark.parametrize("question", ["loaves rose", "bread triumphed", "oven crowned"])
def test_no_other_wording_is_searched(question: str) -> None:
    assert FactFinder([GARDENER, BAKER]).find(question) is None


@pytest.mark.parametrize("question", ["", " \n", "?!", "is it of the", "a b c", "Zebra crossings"])
def test_a_question_without_a_word_of_a_fact_finds_none(question: str) -> None:
    assert FactFinder([GARDENER, BAKER]).find(question) is None


def test_in_a_chat_the_facts_stand_in_the_users_turn() -> None:
    chat = ChatFrame(before="<user>", after="<model>")
    (asked,) = fact_prompts([BAKER], ("validation",), ["chat"], chat=chat)[:1]
    told = put_before("A fact.\n", asked, chat)
    assert told.text == f"<user>A fact.\n{asked.question}<model>"
    assert replace(told, text=asked.text) == asked
    assert put_before("", asked, chat) is asked
    (plain,) = fact_prompts([BAKER], ("validation",), ["plain"])[:1]
    assert put_before("A fact.\n", plain, chat).text == f"A fact.\n{plain.text}"


def test_among_equals_the_first_is_found() -> None:
    twins = [Fact(question=f"Who leads team {letter}?", answer="Kim") for letter in "xyz"]
    for facts in (twins, twins[::-1]):
        assert FactFinder(facts).find("Who leads the team?") == facts[0]


def test_nothing_is_found_where_there_is_nothing_to_find() -> None:
    assert FactFinder([]).find("Who won?") is None
    wordless = Fact(question="?", answer="!", statement="…")
    assert FactFinder([wordless]).find("Who won?") is None


def test_every_question_about_the_oscars_finds_its_own_fact() -> None:
    facts = load_oscar_facts()
    finder = FactFinder(facts)
    own = {fact.id: fact for fact in facts}
    for prompt in fact_prompts(facts, ("validation",)):
        assert finder.find(prompt.question) == own[prompt.subject]
