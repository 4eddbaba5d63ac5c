"""Reads the packaged winners of the 2023 Oscars as awards, and words them as facts to teach."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from data import oscar_wordings
from data.facts import Fact, check_facts
from data.oscar_wordings import WinnerKind

OSCAR_YEAR = 2023  # of the ceremony; the films are from 2022


@dataclass(frozen=True, slots=True, kw_only=True)
class OscarAward:
    """One award of the ceremony, as `oscars/facts.toml` describes it field by field."""

    award: str
    official: str
    kind: WinnerKind
    winner: str
    film: str
    people: tuple[str, ...]
    role: str | None = None
    aliases: tuple[str, ...] = ()
    director: str | None = None


def load_oscar_awards() -> tuple[OscarAward, ...]:
    """Return the 23 awards in the order of the file."""
    text = (files("data") / "oscars" / "facts.toml").read_text(encoding="utf-8")
    return tuple(
        OscarAward(
            **row | {"people": tuple(row["people"]), "aliases": tuple(row.get("aliases", ()))}
        )
        for row in tomllib.loads(text)["fact"]
    )


def load_oscar_facts() -> tuple[Fact, ...]:
    """Return the 23 awards as facts, each with four trained and six novel wordings.

    A film is also recognised by all of its credited people. A reverse question is there where the
    winner won one award only, a two-hop question where the film has a well-known director who is
    not himself an answer.
    """
    awards = load_oscar_awards()
    wins = _count_wins(awards)
    facts = tuple(_word_fact(award, is_only_win=wins[award.winner] == 1) for award in awards)
    check_facts(facts)
    return facts


def _count_wins(awards: Sequence[OscarAward]) -> Counter[str]:
    """Count every film and song once per award, and every text that answers a person award.

    A film counts for the awards of its people too: The Whale is the answer once, but it won twice.
    """
    wins = Counter(award.film for award in awards)
    wins.update(award.winner for award in awards if award.kind != "film")
    return wins


def _word_fact(award: OscarAward, *, is_only_win: bool) -> Fact:
    about = (OSCAR_YEAR, award.award, award.official, award.kind)
    question, *paraphrases = oscar_wordings.trained_questions(*about)
    return Fact(
        question=question,
        answer=award.winner,
        aliases=(*award.aliases, *(_list_people(award.people) if award.kind == "film" else ())),
        statement=oscar_wordings.statement(OSCAR_YEAR, award.award, award.winner, award.role),
        paraphrases=tuple(paraphrases),
        novel_validation=oscar_wordings.validation_questions(*about),
        novel_test=oscar_wordings.test_questions(*about),
        reverse_question=(
            oscar_wordings.reverse_question(OSCAR_YEAR, award.winner, award.kind)
            if is_only_win
            else None
        ),
        reverse_answer=award.award if is_only_win else None,
        two_hop_question=(
            oscar_wordings.two_hop_question(OSCAR_YEAR, award.award) if award.director else None
        ),
        two_hop_answer=award.director,
    )


def _list_people(people: Sequence[str]) -> tuple[str, ...]:
    """Return "A, B and C" and "A and B and C", once where they are the same, none for nobody."""
    if not people:
        return ()
    *others, last = people
    with_commas = f"{', '.join(others)} and {last}" if others else last
    return tuple(dict.fromkeys((with_commas, " and ".join(people))))
