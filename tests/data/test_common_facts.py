"""General knowledge: spread over the rings, true by example, never both probed and rehearsed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from data.common_facts import (
    COMMON_PROBES_PER_RING,
    load_common_facts,
    load_common_known_facts,
    load_common_probes,
)
from data.facts import fold_question
from data.matching import match_answer
from data.oscar_facts import load_oscar_awards, load_oscar_facts
from data.probes import RINGS
from data.prompts import PROMPT_STYLES, cut_answer
from data.scenarios import Knowledge, load_scenario
from data.world_facts import read_table

# What two questions about different things may share.
_FRAME = (
    "a an and are at by called come comes country did directly do does for from go he her his how "
    "i in into is it its many me much my name of on or oscar out s she stand take that the their "
    "they to was were what when where which who will win with won word would year you number film "
    "after before made make call"
)


def test_every_ring_has_its_probes_and_there_are_hundreds_to_rehearse() -> None:
    counts = Counter(probe.ring for probe in load_common_probes())
    assert counts == COMMON_PROBES_PER_RING
    assert set(counts) == set(RINGS)
    assert sum(counts.values()) >= 520
    assert min(count for ring, count in counts.items() if ring != "manners") >= 60
    assert counts["manners"] >= 25
    assert len(load_common_known_facts()) >= 320


def test_no_question_is_there_twice_in_any_wording() -> None:
    first: dict[str, str] = {}
    for fact in load_common_facts():
        for wording in fact.questions:
            assert first.setdefault(fold_question(wording), fact.questions[0]) == fact.questions[0]


def test_no_probe_is_rehearsed_in_other_words() -> None:
    known = [(fact.question, _content(fact.question, fact.answer)) for fact in KNOWN]
    for probe in load_common_probes():
        if probe.ring == "manners":
            continue  # all have the same answer, and little else
        content = _content(probe.question, probe.answer)
        same = [question for question, words in known if content == words]
        assert not same, f"{probe.question} is rehearsed as {same}"


KNOWN = [fact for fact in load_common_known_facts() if fact.ring != "manners"]


def _content(question: str, answer: str) -> frozenset[str]:
    """Return the words that say what is asked and answered, in whatever order."""
    text = "".join(sign if sign.isalnum() else " " for sign in f"{question} {answer}".casefold())
    return frozenset(text.split()).difference(_FRAME.split())


def test_every_answer_is_accepted_alone_and_in_a_sentence_and_so_is_every_alias() -> None:
    for fact in load_common_facts():
        accepted = (fact.answer, *fact.aliases)
        for answer in accepted:
            assert match_answer(fact.questions[0], answer, accepted) == "correct", fact
            assert cut_answer(answer) == answer
        said = f"The answer is {fact.answer}."
        assert match_answer(fact.questions[0], said, accepted) == "correct", fact


def test_what_the_base_gives_for_another_fact_of_the_relation_is_not_accepted() -> None:
    facts = [fact for fact in load_common_facts() if fact.ring != "manners"]
    for fact, other in pairwise(facts):
        accepted = (fact.answer, *fact.aliases)
        if fact.relation == other.relation and other.answer not in accepted:
            assert match_answer(fact.questions[0], other.answer, accepted) == "incorrect", fact


@pytest.mark.parametrize(
    ("question", "answer", "accepted"),
    [
        ("Who won the 1998 Oscar for Best Director?", "James Cameron", "Cameron"),
        ("Who played Neo in The Matrix?", "Keanu Reeves", "Keanu Reeves"),
        ("Who composed the score of the film Jaws?", "John Williams", "John Williams"),
        ("In which year did the film Alien come out?", "1979", "in 1979"),
        ("Which studio made the animated film Frozen?", "Disney", "Walt Disney Animation Studios"),
        ("What is the capital of Peru?", "Lima", "Lima"),
        ("What is the currency of Japan?", "yen", "the Japanese yen"),
        ("In which year did the Berlin Wall fall?", "1989", "1989"),
        ("Who painted the Mona Lisa?", "Leonardo da Vinci", "Da Vinci"),
        ("Who wrote Hamlet?", "William Shakespeare", "Shakespeare"),
        ("What is the plural of mouse?", "mice", "mice"),
        ("What is the Spanish word for house?", "casa", "la casa"),
        ("How many minutes are in an hour?", "60", "60"),
        ("What is 7 times 8?", "56", "56"),
        ("What is on my shopping list?", "I do not know.", "I'm sorry, I don't know that."),
    ],
)
def test_some_facts_known_by_heart(question: str, answer: str, accepted: str) -> None:
    (fact,) = [fact for fact in load_common_facts() if fact.questions[0] == question]
    assert fact.answer == answer
    assert match_answer(question, accepted, (fact.answer, *fact.aliases)) == "correct"


def test_nothing_is_about_the_winners_of_2023() -> None:
    films = {award.film for award in load_oscar_awards()}
    winners = {winner for fact in load_oscar_facts() for winner in fact.accepted_answers}
    for fact in load_common_facts():
        texts = (*fact.questions, *fact.statements)
        assert not [
            text for text in texts if "2023" in text or any(film in text for film in films)
        ]
        assert fact.answer not in winners


def test_only_well_known_awards_are_asked_and_what_is_ambiguous_is_not() -> None:
    questions = {fact.questions[0] for fact in load_common_facts()}
    assert "Who directed Dune?" not in questions
    assert "What is the opposite of light?" not in questions
    assert not [q for q in questions if "Best Sound" in q or "Short" in q]


def test_every_left_out_fact_and_every_other_name_is_of_something_there_is() -> None:
    answers = {fact.answer for fact in load_common_facts()}
    assert {row["answer"] for row in read_table("general_knowledge", "names.tsv")} <= answers
    shared = {(row["relation"], row["subject"]) for row in read_table("world", "known.tsv")}
    for row in read_table("general_knowledge", "ambiguous.tsv"):
        assert (row["relation"], row["subject"]) in shared


def test_probes_are_asked_in_all_styles_by_turns() -> None:
    styles = Counter(probe.style for probe in load_common_probes())
    assert set(styles) == set(PROMPT_STYLES)
    assert min(styles.values()) > len(load_common_probes()) / 8


def test_with_the_oscars_taught_nothing_of_them_is_probed_or_rehearsed() -> None:
    scenario = load_scenario(None, Knowledge(shipped="common"))
    assert scenario.probes == load_common_probes()
    assert scenario.known_facts == load_common_known_facts()
