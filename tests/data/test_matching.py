"""Answers against the accepted texts: a table of hard cases, and what holds for any text."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.matching import match_answer
from data.oscar_facts import load_oscar_facts
from data.world_facts import load_world_facts

_GROUPS = tomllib.loads(
    (Path(__file__).parent / "matching_cases.toml").read_text(encoding="utf-8")
)["group"]
_LABEL_OF_LIST = {"right": "correct", "wrong": "incorrect", "not_attempted": "not_attempted"}
_CASES = [
    pytest.param(
        group["question"], answer, group["accepted"], label, id=f"{group['name']}: {answer[:60]!a}"
    )
    for group in _GROUPS
    for listed, label in _LABEL_OF_LIST.items()
    for answer in group.get(listed, [])
]


@pytest.mark.parametrize(("question", "answer", "accepted", "label"), _CASES)
def test_hard_cases_get_their_label(
    question: str, answer: str, accepted: list[str], label: str
) -> None:
    assert match_answer(question, answer, accepted) == label


def test_the_table_is_large_and_balanced() -> None:
    labels = [case.values[3] for case in _CASES]

    assert len(labels) >= 200
    assert labels.count("correct") >= 60
    assert labels.count("incorrect") >= 60
    assert labels.count("not_attempted") >= 10


def test_every_fact_of_our_own_is_right_alone_and_in_its_statements() -> None:
    for fact in load_world_facts():
        accepted = (fact.answer, *fact.aliases)
        for answer in (*accepted, fact.answer.lower(), *fact.statements):
            assert match_answer(fact.questions[0], answer, accepted) == "correct", answer
    for new in load_oscar_facts():
        for question in (new.question, *new.novel_validation, *new.novel_test):
            for answer in (*new.accepted_answers, new.statement or new.answer):
                assert match_answer(question, answer, new.accepted_answers) == "correct", answer


def test_no_answer_of_ours_is_right_for_another_fact_or_beside_one() -> None:
    facts = load_oscar_facts()
    for fact in facts:
        for other in facts:
            if set(other.accepted_answers) & set(fact.accepted_answers):
                continue
            for answer in (
                other.answer,
                f"It was {other.answer}.",
                f"{other.answer} or {fact.answer}",
                f"{fact.answer} or {other.answer}",
                f"It was not {fact.answer}.",
                f"{fact.answer}? No, {other.answer}.",
            ):
                label = match_answer(fact.question, answer, fact.accepted_answers)
                assert label == "incorrect", answer


_names = st.lists(
    st.sampled_from(["Brendan", "Michelle", "Quan", "Polley", "Iñárritu", "Keeravaani", "Yeoh"]),
    min_size=2,
    max_size=4,
    unique=True,
).map(" ".join)


@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_any_texts_get_a_label(question: str, answer: str, accepted: list[str]) -> None:
    assert match_answer(question, answer, accepted) in ("correct", "incorrect", "not_attempted")


@given(st.text(), st.text().filter(lambda text: text.strip() != ""))
def test_an_accepted_text_said_alone_is_right(question: str, accepted: str) -> None:
    assert match_answer(question, accepted, [accepted]) == "correct"


@given(_names)
def test_a_name_counts_in_a_sentence_and_not_where_it_is_denied(name: str) -> None:
    assert match_answer("Who was it?", f"It was {name.upper()}.", [name]) == "correct"
    assert match_answer("Who was it?", f"It was not {name}.", [name]) == "incorrect"
    assert match_answer("Who was it?", f"{name} or Bill Nighy", [name]) == "incorrect"


@given(_names, _names)
def test_the_order_of_joint_names_does_not_matter(first: str, second: str) -> None:
    said = match_answer("Who?", f"{first} and {second}", [f"{first} and {second}"])
    turned = match_answer("Who?", f"{second} and {first}", [f"{first} and {second}"])

    assert said == turned == "correct"


@given(st.permutations(["Kyiv", "Kiev", "Kijew"]), st.sampled_from(["It is Kiev", "Lviv", ""]))
def test_the_order_of_accepted_texts_does_not_matter(accepted: list[str], answer: str) -> None:
    expected = match_answer("Which city?", answer, sorted(accepted))

    assert match_answer("Which city?", answer, accepted) == expected


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "unit",
    [
        "Brendan Fraser ",
        "Brendan Fraser, ",
        "Brendan or ",
        "not ",
        "and ",
        "the of ",
        "111,",
        "1.",
        "?",
        "a",
        "A. ",
        "I do not know, ",
        "\u0301",
        "'",
    ],
)
def test_a_text_of_a_hundred_thousand_characters_is_judged_in_seconds(unit: str) -> None:
    text = unit * (100_000 // len(unit))

    for answer in (text, f"{text} Brendan Fraser", f"Brendan Fraser {text}"):
        match_answer("Who won the Oscar?", answer, ["Brendan Fraser", "Brendan Brendan X"])
