"""Real facts that a model of some billion parameters knows: what is probed, what rehearsed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from data.facts import text_digest
from data.oscar_facts import load_oscar_awards
from data.probes import KnownFact, Probe, Ring
from data.world_facts import (
    RELATIONS,
    Relation,
    WorldFact,
    as_known_facts,
    as_probes,
    choose_probed,
    load_world_facts,
    read_table,
    word_fact,
)

# How many facts of each ring are probed; the rest of the ring may be rehearsed.
COMMON_PROBES_PER_RING: dict[Ring, int] = {
    "neighbours": 130,
    "domain": 130,
    "general": 150,
    "skills": 120,
    "manners": 45,
}

# The awards whose winners are widely known; the others' are asked of the pocket model only.
_WELL_KNOWN_AWARDS = (
    "Best Picture",
    "Best Director",
    "Best Actor",
    "Best Actress",
    "Best Supporting Actor",
    "Best Supporting Actress",
    "Best Animated Feature",
    "Best International Feature",
)
# Not its sums of one digit, which take up the ring and show no loss.
_RELATIONS_OF_THE_WORLD = (
    "director",
    "capital",
    "element",
    "author",
    "election",
    "opposite",
    "past_tense",
    "unknown",
)


def _word_for(language: str) -> Relation:
    return Relation(
        ring="skills",
        questions=(f"What is the {language} word for {{s}}?", f"What is {{s}} in {language}?"),
        statements=(f"The {language} word for {{s}} is {{a}}.",),
    )


def _as_written(ring: Ring) -> Relation:
    """Return the relation of questions that follow no pattern."""
    return Relation(ring=ring, questions=("{s}",), statements=())


_FURTHER_RELATIONS: dict[str, Relation] = {
    "role": Relation(
        ring="domain",
        questions=("Who played {s}?", "Which actor played {s}?"),
        statements=("{a} played {s}.",),
    ),
    "score": Relation(
        ring="domain",
        questions=("Who composed the score of the film {s}?", "Who wrote the music of {s}?"),
        statements=("The score of the film {s} was composed by {a}.",),
    ),
    "studio": Relation(
        ring="domain",
        questions=("Which studio made the animated film {s}?", "Which studio made {s}?"),
        statements=("The animated film {s} was made by {a}.",),
    ),
    "film_year": Relation(
        ring="domain",
        questions=("In which year did the film {s} come out?", "In which year was {s} released?"),
        statements=("The film {s} came out in {a}.",),
    ),
    "domain": _as_written("domain"),
    "painter": Relation(
        ring="general",
        questions=("Who painted {s}?", "Which artist painted {s}?"),
        statements=("{a} painted {s}.",),
    ),
    "composer": Relation(
        ring="general",
        questions=("Who composed {s}?", "Which composer wrote {s}?"),
        statements=("{a} composed {s}.",),
    ),
    "currency": Relation(
        ring="general",
        questions=("What is the currency of {s}?", "Which currency is used in {s}?"),
        statements=("The currency of {s} is the {a}.",),
    ),
    "event_year": Relation(
        ring="general",
        questions=("In which year {s}?", "In what year {s}?", "When {s}?"),
        statements=(),
    ),
    "country": Relation(
        ring="general",
        questions=("In which country is {s}?", "Which country is {s} in?"),
        statements=("The country in which one finds {s} is {a}.",),
    ),
    "general": _as_written("general"),
    "plural": Relation(
        ring="skills",
        questions=("What is the plural of {s}?", "What is the plural form of {s}?"),
        statements=("The plural of {s} is {a}.",),
    ),
    "comparative": Relation(
        ring="skills",
        questions=("What is the comparative of {s}?", "What is the comparative form of {s}?"),
        statements=("The comparative of {s} is {a}.",),
    ),
    "spanish": _word_for("Spanish"),
    "french": _word_for("French"),
    "german": _word_for("German"),
    "italian": _word_for("Italian"),
    "roman": Relation(
        ring="skills",
        questions=("Which number does the Roman numeral {s} stand for?",),
        statements=("The Roman numeral {s} stands for {a}.",),
    ),
    "unit": Relation(ring="skills", questions=("How many {s}?",), statements=()),
    "young": Relation(
        ring="skills",
        questions=("What is a young {s} called?", "What do you call a young {s}?"),
        statements=("A young {s} is called {a}.",),
    ),
    "next": Relation(
        ring="skills",
        questions=("What comes directly after {s}?", "What comes after {s}?"),
        statements=("Directly after {s} comes {a}.",),
    ),
    "arithmetic": Relation(
        ring="skills",
        questions=("What is {s}?", "How much is {s}?", "Work out {s}."),
        statements=("{s} is {a}.",),
    ),
    "skills": _as_written("skills"),
}


@cache
def load_common_facts() -> tuple[WorldFact, ...]:
    """Return the shared and the further facts in a fixed order, with those probed marked.

    Shared are those of the pocket model's world that are unambiguous and widely known. Nothing is
    about a film that won an Oscar in 2023, which is what a study teaches by default. Which facts
    are probed follows from a digest of the question, so that adding a fact moves few others.
    """
    other_names = {
        row["answer"]: tuple(row["aliases"].split("|"))
        for row in read_table("general_knowledge", "names.tsv")
    }
    facts = (*_shared_facts(), *_further_facts())
    probed = choose_probed(facts, COMMON_PROBES_PER_RING)
    return tuple(
        replace(
            fact,
            aliases=tuple(dict.fromkeys((*fact.aliases, *other_names.get(fact.answer, ())))),
            probed=text_digest(fact.questions[0]) in probed,
            coverage="every style",
        )
        for fact in facts
    )


def load_common_probes() -> tuple[Probe, ...]:
    """Return the probed facts as probes, in the order of `load_common_facts`."""
    return as_probes(load_common_facts())


def load_common_known_facts() -> tuple[KnownFact, ...]:
    """Return the facts that training may rehearse, none of which is probed."""
    return as_known_facts(load_common_facts())


def _shared_facts() -> Iterator[WorldFact]:
    left_out = {
        RELATIONS[row["relation"]].questions[0].format(s=row["subject"])
        for row in read_table("general_knowledge", "ambiguous.tsv")
    }
    left_out |= {
        RELATIONS["director"].questions[0].format(s=award.film) for award in load_oscar_awards()
    }
    for fact in load_world_facts():
        is_shared = fact.relation in _RELATIONS_OF_THE_WORLD or (
            fact.relation == "oscar"
            and any(f"Oscar for {award}?" in fact.questions[0] for award in _WELL_KNOWN_AWARDS)
        )
        if is_shared and fact.questions[0] not in left_out:
            yield fact


def _further_facts() -> Iterator[WorldFact]:
    relations = RELATIONS | _FURTHER_RELATIONS
    for row in read_table("general_knowledge", "facts.tsv"):
        yield word_fact(
            row["relation"],
            relations[row["relation"]],
            row["subject"],
            row["answer"],
            tuple(filter(None, row["aliases"].split("|"))),
        )
    # One order of the two numbers only: a product turned round is the same fact.
    for a in range(2, 10):
        for b in range(a, 10):
            subject, product = f"{a} times {b}", str(a * b)
            yield word_fact("arithmetic", relations["arithmetic"], subject, product, ())
