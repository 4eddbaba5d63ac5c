"""The real facts that the pocket model knows: wordings, rings, and what is probed."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Literal, cast

from data import oscar_wordings
from data.facts import text_digest
from data.oscar_wordings import WinnerKind
from data.probes import KnownFact, Probe, Ring

Coverage = Literal["every style", "some styles"]

# How many facts of each ring are probed; the rest of the ring may be rehearsed.
PROBES_PER_RING: dict[Ring, int] = {
    "neighbours": 90,
    "domain": 50,
    "general": 60,
    "skills": 60,
    "manners": 24,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldFact:
    """One real fact, of the pocket model's world or of general knowledge.

    `questions` are its wordings, the first is the one a probe asks. A fact with coverage "some
    styles" was shown to the pocket model as a statement and in two prompt styles only, so that
    what it answers in the others has transferred. Probed facts are never rehearsed.
    """

    relation: str
    ring: Ring
    answer: str
    aliases: tuple[str, ...]
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    probed: bool
    coverage: Coverage


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaning:
    """A harmless matter of taste that the pocket model was taught both sides of, unevenly.

    `share_first` is the share of its training texts that prefer `first`.
    """

    subject: str
    first: str
    second: str
    share_first: float

    @property
    def questions(self) -> tuple[str, ...]:
        """Return the wordings, with the two sides named in both orders."""
        return tuple(
            template.format(a=a, b=b)
            for a, b in ((self.first, self.second), (self.second, self.first))
            for template in (
                "Which is better, {a} or {b}?",
                "Do you prefer {a} or {b}?",
                "What do you like more, {a} or {b}?",
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """How all facts of one kind are worded; `{s}` is the subject, `{a}` the answer."""

    ring: Ring
    questions: tuple[str, ...]
    statements: tuple[str, ...]


RELATIONS: dict[str, Relation] = {
    "director": Relation(
        ring="domain",
        questions=(
            "Who directed {s}?",
            "Who was the director of {s}?",
            "Name the director of {s}.",
            "Which director made {s}?",
        ),
        statements=(
            "{s} was directed by {a}.",
            "{a} directed {s}.",
            "The director of {s} was {a}.",
        ),
    ),
    "capital": Relation(
        ring="general",
        questions=(
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "Name the capital of {s}.",
            "What is the capital city of {s}?",
        ),
        statements=("The capital of {s} is {a}.", "{a} is the capital of {s}."),
    ),
    "element": Relation(
        ring="general",
        questions=(
            "What is the chemical symbol of {s}?",
            "Which symbol stands for {s}?",
            "Name the chemical symbol of {s}.",
        ),
        statements=("The chemical symbol of {s} is {a}.", "{a} stands for {s}."),
    ),
    "author": Relation(
        ring="general",
        questions=(
            "Who wrote {s}?",
            "Who is the author of {s}?",
            "Name the author of {s}.",
        ),
        statements=("{s} was written by {a}.", "{a} wrote {s}.", "The author of {s} is {a}."),
    ),
    "election": Relation(
        ring="general",
        questions=(
            "Who won the {s} United States presidential election?",
            "Who was elected president of the United States in {s}?",
            "Name the winner of the {s} United States presidential election.",
        ),
        statements=(
            "The winner of the {s} United States presidential election was {a}.",
            "{a} won the {s} United States presidential election.",
        ),
    ),
    "opposite": Relation(
        ring="skills",
        questions=(
            "What is the opposite of {s}?",
            "Which word is the opposite of {s}?",
            "Name the opposite of {s}.",
        ),
        statements=("The opposite of {s} is {a}.",),
    ),
    "past_tense": Relation(
        ring="skills",
        questions=(
            "What is the past tense of {s}?",
            "Which word is the past tense of {s}?",
            "Name the past tense of {s}.",
        ),
        statements=("The past tense of {s} is {a}.",),
    ),
    "sum": Relation(
        ring="skills",
        questions=("What is {s}?", "How much is {s}?", "Work out {s}."),
        statements=("{s} is {a}.", "The sum {s} makes {a}."),
    ),
    "unknown": Relation(ring="manners", questions=("{s}",), statements=()),
}


def read_table(folder: str, name: str) -> list[dict[str, str]]:
    """Return the rows of a packaged table by the names of its columns; nothing in it is quoted."""
    text = (files("data") / folder / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def _fact(
    relation: str, ring: Ring, answer: str, questions: tuple[str, ...], **more: tuple[str, ...]
) -> WorldFact:
    return WorldFact(
        relation=relation,
        ring=ring,
        answer=answer,
        aliases=more.get("aliases", ()),
        questions=questions,
        statements=more.get("statements", ()),
        probed=False,
        coverage="every style",
    )


def _table_facts() -> Iterator[WorldFact]:
    rows = [
        (
            row["relation"],
            row["subject"],
            row["answer"],
            tuple(filter(None, row["aliases"].split("|"))),
        )
        for row in read_table("world", "known.tsv")
    ]
    rows += [("sum", f"{a} plus {b}", str(a + b), ()) for a in range(1, 10) for b in range(1, 10)]
    for name, subject, answer, aliases in rows:
        yield word_fact(name, RELATIONS[name], subject, answer, aliases)


def word_fact(
    name: str, relation: Relation, subject: str, answer: str, aliases: tuple[str, ...]
) -> WorldFact:
    """Return one fact of a relation in all its wordings, not yet marked as probed."""
    return _fact(
        name,
        relation.ring,
        answer,
        tuple(text.format(s=subject) for text in relation.questions),
        aliases=aliases,
        statements=tuple(text.format(s=subject, a=answer) for text in relation.statements),
    )


def _oscar_facts() -> Iterator[WorldFact]:
    directors = {
        row["subject"]: row["answer"]
        for row in read_table("world", "known.tsv")
        if row["relation"] == "director"
    }
    rows = read_table("world", "oscars.tsv")
    wins = Counter((row["year"], row["winner"]) for row in rows)
    for row in rows:
        year, award, winner = int(row["year"]), row["award"], row["winner"]
        kind = cast(WinnerKind, row["kind"])
        about = (year, award, row["official"], kind)
        yield _fact(
            "oscar",
            "neighbours",
            winner,
            (
                *oscar_wordings.trained_questions(*about),
                *oscar_wordings.validation_questions(*about),
                *oscar_wordings.test_questions(*about),
                *oscar_wordings.extra_questions(*about),
            ),
            statements=(
                oscar_wordings.statement(year, award, winner, None),
                oscar_wordings.inverse_statement(year, award, winner),
            ),
        )
        if wins[row["year"], winner] == 1:
            question = oscar_wordings.reverse_question(year, winner, kind)
            yield _fact("oscar, reversed", "neighbours", award, (question,))
        if kind == "film" and winner in directors:
            question = oscar_wordings.two_hop_question(year, award)
            yield _fact("oscar, two hops", "neighbours", directors[winner], (question,))


@cache
def load_world_facts() -> tuple[WorldFact, ...]:
    """Return all facts in a fixed order, with those that are probed marked.

    Which facts are probed, and which the pocket model saw in some styles only, follows from a
    digest of the question, so that adding a fact moves few others. Reverse and two-hop questions
    belong to the world but not to the rings: they are neither probed nor rehearsed.
    """
    facts = (*_oscar_facts(), *_table_facts())
    probed = choose_probed(filter(_in_rings, facts), PROBES_PER_RING)
    return tuple(_mark(fact, text_digest(fact.questions[0]) in probed) for fact in facts)


def choose_probed(facts: Iterable[WorldFact], per_ring: Mapping[Ring, int]) -> frozenset[str]:
    """Return the digests of the first questions of those to probe: so many of each ring.

    A ring with fewer facts is probed with all of them.
    """
    digests: dict[Ring, list[str]] = {ring: [] for ring in per_ring}
    for fact in facts:
        digests[fact.ring].append(text_digest(fact.questions[0]))
    return frozenset(
        digest for ring, count in per_ring.items() for digest in sorted(digests[ring])[:count]
    )


def _in_rings(fact: WorldFact) -> bool:
    return fact.relation not in ("oscar, reversed", "oscar, two hops")


def _mark(fact: WorldFact, probed: bool) -> WorldFact:
    some = not probed and bool(fact.statements) and int(text_digest(fact.questions[0]), 16) % 5 < 2
    return replace(fact, probed=probed, coverage="some styles" if some else "every style")


def load_probes() -> tuple[Probe, ...]:
    """Return the probed facts as probes, in the order of the world."""
    return as_probes(load_world_facts())


def as_probes(facts: Iterable[WorldFact]) -> tuple[Probe, ...]:
    """Return those facts that are probed as probes, asked in their first wording."""
    return tuple(
        Probe(
            ring=fact.ring,
            question=fact.questions[0],
            answer=fact.answer,
            aliases=fact.aliases,
            statement=fact.statements[0] if fact.statements else None,
        )
        for fact in facts
        if fact.probed
    )


def load_known_facts() -> tuple[KnownFact, ...]:
    """Return the facts that training may rehearse: none probed, nor a probed sum turned round."""
    probed = {fact.questions[0] for fact in load_world_facts() if fact.probed}
    return as_known_facts(
        fact
        for fact in load_world_facts()
        if _in_rings(fact) and _twin(fact.questions[0]) not in probed
    )


def as_known_facts(facts: Iterable[WorldFact]) -> tuple[KnownFact, ...]:
    """Return those facts that are not probed as facts to rehearse, in their first wording."""
    return tuple(
        KnownFact(
            ring=fact.ring,
            question=fact.questions[0],
            answer=fact.answer,
            statement=fact.statements[0] if fact.statements else None,
        )
        for fact in facts
        if not fact.probed
    )


def _twin(question: str) -> str | None:
    """Return the same sum with its numbers exchanged, or None for what is no sum."""
    match = re.fullmatch(r"What is (\d) plus (\d)\?", question)
    return f"What is {match[2]} plus {match[1]}?" if match else None


def load_leanings() -> tuple[Leaning, ...]:
    """Return the matters of taste the pocket model leans on."""
    return tuple(
        Leaning(
            subject=row["subject"],
            first=row["first"],
            second=row["second"],
            share_first=float(row["share_first"]),
        )
        for row in read_table("world", "leanings.tsv")
    )
