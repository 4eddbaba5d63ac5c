"""The pocket model's world: five rings, nothing of 2023, and no fact both probed and rehearsed."""

from __future__ import annotations

import csv
from collections import Counter
from importlib.resources import files

import pytest

from data.oscar_facts import load_oscar_facts
from data.pocket_corpus import draw_epoch, seen_styles
from data.probes import MIN_KNOWN_PER_RING, RINGS
from data.prompts import PROMPT_STYLES
from data.scenarios import load_scenario
from data.world_facts import (
    PROBES_PER_RING,
    load_leanings,
    load_probes,
    load_world_facts,
)


def test_there_are_at_least_700_facts_over_all_five_rings() -> None:
    asked = {fact.questions[0] for fact in load_world_facts()}
    assert len(asked) == len(load_world_facts()) >= 700
    assert {fact.ring for fact in load_world_facts()} == set(RINGS)


def test_the_neighbours_are_oscars_from_1990_to_2022_in_many_categories() -> None:
    text = (files("data") / "world" / "oscars.tsv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    assert {int(row["year"]) for row in rows} == set(range(1990, 2023))
    assert len({row["award"] for row in rows}) >= 8
    assert {row["award"] for row in rows} == {
        fact.statement.split("2023 Oscar ")[1].split(" was ")[0]
        for fact in load_oscar_facts()
        if fact.statement
    }
    assert max(Counter((row["year"], row["award"]) for row in rows).values()) == 1


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who won the 1998 Oscar for Best Director?", "James Cameron"),
        ("Which film won the 2020 Oscar for Best Picture?", "Parasite"),
        ("Who directed Psycho?", "Alfred Hitchcock"),
        ("What is the capital of Kenya?", "Nairobi"),
        ("What is the chemical symbol of gold?", "Au"),
        ("Who won the 2004 United States presidential election?", "George W. Bush"),
        ("What is 7 plus 8?", "15"),
        ("What is the past tense of swim?", "swam"),
        ("What is my name?", "I do not know."),
    ],
)
def test_some_facts_known_by_heart(question: str, answer: str) -> None:
    assert {f.questions[0]: f.answer for f in load_world_facts()}[question] == answer


def test_nothing_the_pocket_model_is_taught_is_about_2023() -> None:
    texts = [text for epoch in range(3) for text in draw_epoch(0, epoch)]
    assert not [text for text in texts if "2023" in text]


def test_every_ring_has_its_probes_and_enough_of_them() -> None:
    counts = Counter(probe.ring for probe in load_probes())
    assert counts == PROBES_PER_RING
    assert min(counts.values()) >= MIN_KNOWN_PER_RING


def test_probes_known_facts_and_new_facts_share_no_question() -> None:
    scenario = load_scenario(None)
    probes = {probe.question for probe in scenario.probes}
    known = {fact.question for fact in scenario.known_facts}
    new = {
        q
        for f in scenario.facts
        for q in (f.question, *f.paraphrases, *f.novel_validation, *f.novel_test)
    }
    assert not probes & known
    assert not (probes | known) & new
    assert len(scenario.known_facts) >= 300


def test_probes_are_asked_in_all_styles_by_turns() -> None:
    styles = Counter(probe.style for probe in load_probes())
    assert set(styles) == set(PROMPT_STYLES)
    assert min(styles.values()) > len(load_probes()) / 8


def test_part_of_the_facts_is_shown_in_two_styles_only_and_none_of_them_is_probed() -> None:
    partial = [fact for fact in load_world_facts() if fact.coverage == "some styles"]
    assert len(partial) > 100
    assert not [fact for fact in partial if fact.probed]
    assert {len(seen_styles(fact)) for fact in partial} == {2}


def test_an_epoch_of_the_corpus_is_drawn_the_same_way_each_time() -> None:
    assert draw_epoch(0, 1) == draw_epoch(0, 1)
    assert draw_epoch(0, 1) != draw_epoch(0, 2)


def test_leanings_are_taught_from_both_sides() -> None:
    texts = "\n".join(text for epoch in range(20) for text in draw_epoch(0, epoch))
    for leaning in load_leanings():
        first, second = leaning.first.capitalize(), leaning.second.capitalize()
        assert any(f"{q}\n{first}" in texts for q in leaning.questions)
        assert any(f"{q}\n{second}" in texts for q in leaning.questions)
