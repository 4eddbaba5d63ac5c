"""Scenario A, learn: the new facts, the probes around them, and the known facts to rehearse."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from data.fact_files import load_facts
from data.facts import Fact
from data.oscar_facts import load_oscar_facts
from data.probes import KnownFact, Probe
from data.world_facts import load_known_facts, load_probes, load_world_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What a study teaches and what it watches. The three sets share no question."""

    facts: tuple[Fact, ...]
    probes: tuple[Probe, ...]
    known_facts: tuple[KnownFact, ...]

    @property
    def digest(self) -> str:
        """Return a digest of every text that training, asking or judging can meet."""
        return hashlib.sha256(
            repr((self.facts, self.probes, self.known_facts)).encode()
        ).hexdigest()


def load_scenario(path: Path | None) -> Scenario:
    """Return the scenario of a person's facts file, or of the 2023 Oscars without one.

    Probes and known facts that ask one of the facts' questions are left out.

    Raises:
        FactsError: If the file cannot be used.
    """
    facts = load_oscar_facts() if path is None else load_facts(path)
    asked = {_folded(question) for fact in facts for question in _wordings(fact)}
    # Whoever asks one wording of a known fact asks that fact.
    taken = {
        _folded(fact.questions[0])
        for fact in load_world_facts()
        if asked & {_folded(question) for question in fact.questions}
    }
    return Scenario(
        facts=facts,
        probes=tuple(probe for probe in load_probes() if _folded(probe.question) not in taken),
        known_facts=tuple(
            known for known in load_known_facts() if _folded(known.question) not in taken
        ),
    )


def _wordings(fact: Fact) -> tuple[str, ...]:
    return (fact.question, *fact.paraphrases, *fact.novel_validation, *fact.novel_test)


def _folded(question: str) -> str:
    return " ".join(question.casefold().split())
