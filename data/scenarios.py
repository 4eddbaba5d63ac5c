"""Scenario A, learn: the new facts, the probes around them, and the known facts to rehearse."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.common_facts import load_common_facts, load_common_known_facts, load_common_probes
from data.fact_files import load_facts
from data.facts import Fact, FactsError, fold_question
from data.oscar_facts import load_oscar_facts
from data.probe_files import load_probe_file, load_rehearsal_file
from data.probes import KnownFact, Probe
from data.world_facts import WorldFact, load_known_facts, load_probes, load_world_facts

ShippedKnowledge = Literal["pocket", "common"]
ProbesMode = Literal["extend", "replace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """Where the probes and the facts to rehearse come from.

    `shipped` is what the pocket model knows, or what large models do in common. A person's
    `probes` come in addition to those shipped or, with `probes_mode` "replace", in their place; a
    person's facts to rehearse always come in addition.
    """

    shipped: ShippedKnowledge = "pocket"
    probes: Path | None = None
    probes_mode: ProbesMode = "extend"
    rehearsal: Path | None = None


POCKET_KNOWLEDGE = Knowledge()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shipped:
    facts: Callable[[], tuple[WorldFact, ...]]
    probes: Callable[[], tuple[Probe, ...]]
    known_facts: Callable[[], tuple[KnownFact, ...]]


_SHIPPED: dict[ShippedKnowledge, _Shipped] = {
    "pocket": _Shipped(facts=load_world_facts, probes=load_probes, known_facts=load_known_facts),
    "common": _Shipped(
        facts=load_common_facts, probes=load_common_probes, known_facts=load_common_known_facts
    ),
}


def load_scenario(path: Path | None, knowledge: Knowledge = POCKET_KNOWLEDGE) -> Scenario:
    """Return the scenario of a person's facts file, or of the 2023 Oscars without one.

    What is shipped gives way to a person's files: shipped probes and known facts that ask what is
    taught, and those that ask what a file of probes or of facts to rehearse asks, are left out.
    Only a shipped probe that a person wants to rehearse is refused, for it would be asked again.

    Args:
        path: The facts to teach; None for the 2023 Oscars.
        knowledge: What is probed and what may be rehearsed.

    Raises:
        FactsError: If a file cannot be used, or if what one of them asks must not be asked because
            another does.
    """
    shipped = _SHIPPED[knowledge.shipped]
    sources = _Sources(shipped.facts())
    facts = load_oscar_facts() if path is None else load_facts(path)
    source = "of the 2023 Oscars" if path is None else f"of {path}"
    for number, fact in enumerate(facts, start=1):
        sources.note(_wordings(fact), f"new fact {number} {source} ({fact.question!r})")

    own_probes: tuple[Probe, ...] = ()
    if knowledge.probes is not None:
        own_probes = load_probe_file(knowledge.probes)
        sources.refuse(knowledge.probes, own_probes, "what is taught must not be a probe")
        for number, probe in enumerate(own_probes, start=1):
            place = f"probe {number} of {knowledge.probes} ({probe.question!r})"
            sources.note([probe.question], place)
    shipped_probes: tuple[Probe, ...] = ()
    if knowledge.probes is None or knowledge.probes_mode == "extend":
        shipped_probes = tuple(p for p in shipped.probes() if not sources.asker(p.question))

    own_known: tuple[KnownFact, ...] = ()
    if knowledge.rehearsal is not None:
        own_known = load_rehearsal_file(knowledge.rehearsal)
        for probe in shipped_probes:
            place = f'the shipped probe {probe.question!r} (probes_mode = "replace" asks none)'
            sources.note([probe.question], place)
        why = "what is taught or probed must not be rehearsed"
        sources.refuse(knowledge.rehearsal, own_known, why)
        sources.note([known.question for known in own_known], str(knowledge.rehearsal))
    shipped_known = tuple(k for k in shipped.known_facts() if not sources.asker(k.question))
    return Scenario(
        facts=facts,
        probes=(*shipped_probes, *own_probes),
        known_facts=(*shipped_known, *own_known),
    )


class _Sources:
    """Remembers who asks what; whoever asks one wording of a shipped fact asks that fact."""

    def __init__(self, shipped: Iterable[WorldFact]) -> None:
        self._standing_for: defaultdict[str, set[str]] = defaultdict(set)
        for fact in shipped:
            for wording in fact.questions:
                self._standing_for[fold_question(wording)].add(fold_question(fact.questions[0]))
        self._askers: dict[str, str] = {}

    def note(self, questions: Iterable[str], asker: str) -> None:
        for question in questions:
            for key in self._keys(question):
                self._askers.setdefault(key, asker)

    def asker(self, question: str) -> str | None:
        """Return who asks a question already, in any wording that is known to be the same."""
        keys = self._keys(question)
        return next((self._askers[key] for key in keys if key in self._askers), None)

    def refuse(self, path: Path, asked: Sequence[Probe | KnownFact], why: str) -> None:
        """Refuse a file that asks what is asked already."""
        for number, each in enumerate(asked, start=1):
            asker = self.asker(each.question)
            if asker is not None:
                raise FactsError(
                    f"{path}: question: row {number} ({each.question!r}) asks the same as "
                    f"{asker}, and {why}; remove one of them"
                )

    def _keys(self, question: str) -> list[str]:
        key = fold_question(question)
        return [key, *sorted(self._standing_for.get(key, ()))]


def _wordings(fact: Fact) -> tuple[str, ...]:
    further = (fact.reverse_question, fact.two_hop_question)
    return (
        fact.question,
        *fact.paraphrases,
        *fact.novel_validation,
        *fact.novel_test,
        *(question for question in further if question is not None),
    )
