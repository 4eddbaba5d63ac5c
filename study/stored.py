"""What a stored study found, read without a model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from analysis.confirmation import RepeatKey
from analysis.findings import Findings, find
from analysis.points import Reference
from analysis.verdict import Subject
from data.agreement import Agreement
from data.facts import Fact, FactsError
from data.measurements import Estimate, Verdict
from data.scenarios import Knowledge, Scenario, ShippedKnowledge, load_scenario
from data.scoring import score_recall
from objectives.models.sources import POCKET
from storage.database import StudyNotFound, StudyStorage
from storage.reader import (
    read_adapter_costs,
    read_agreements,
    read_sittings,
    read_study,
    read_verdicts,
)
from storage.records import StudyRecord
from study.confirming import unconfirmed
from study.place import Place, open_place
from study.spec import StudySpec


def read_stored(place: Place) -> StudyRecord | None:
    """Return the study that lives at a place, or None if there is none yet."""
    if not place.has_database:
        return None
    with closing(open_place(place)) as storage:
        try:
            return read_study(storage, place.name)
        except StudyNotFound:
            return None


def is_finished(spec: StudySpec, place: Place) -> bool:
    """Return whether just this spec has run to its end, without loading a model."""
    record = read_stored(place)
    if record is None or not record.ended_trials == len(record.trials) == spec.trials:
        return False
    if StudySpec.model_validate_json(record.config) != spec.recorded:
        return False
    if record.fingerprint["facts"] != facts_digest(load_study_scenario(spec)):
        return False  # the file has changed under its name
    with closing(open_place(place)) as storage:
        findings = find_in(storage, place)
        return not unconfirmed(findings) and findings.are_repeated(spec.confirming_seeds)


def find_in(storage: StudyStorage, place: Place) -> Findings:
    """Return what a stored study found, without a model.

    Raises:
        StudyNotFound: If the database holds no study of this name.
    """
    record = read_study(storage, place.name)
    spec = StudySpec.model_validate_json(record.config)
    base = read_verdicts(storage, record.base.id) if record.base else ()
    new = _facts_asked(base)
    return find(
        record,
        Subject(model=spec.model, new=new, known=_facts_set_aside(spec, record, new)),
        reference_of(spec, record.base.measurement.recall.value if record.base else None),
        _agreement_of_judge(storage, record),
        _recalls_together(storage, record),
        adapter_costs=read_adapter_costs(storage, place.name),
        sittings=read_sittings(storage, place.name),
    )


def _recalls_together(storage: StudyStorage, record: StudyRecord) -> dict[RepeatKey, Estimate]:
    """Return each repeated recipe's recall on the test wordings, over all seeds at once."""
    verdicts = defaultdict[RepeatKey, list[Verdict]](list)
    for trial in record.trials:
        for kept in trial.measurements:
            if kept.purpose == "repeat":
                key = (trial.number, kept.measurement.epoch, kept.measurement.sampling.name)
                verdicts[key] += read_verdicts(storage, kept.id, phrasing="test")
    return {key: score_recall(own, phrasing="test") for key, own in verdicts.items()}


def _agreement_of_judge(storage: StudyStorage, record: StudyRecord) -> Agreement | None:
    """Return how far the study's judge agrees with people about its answers, as last measured."""
    measured = [
        kept.of_study
        for kept in read_agreements(storage, record.name)
        if kept.judge == record.fingerprint.get("judge")
    ]
    return measured[-1] if measured else None


def reference_of(spec: StudySpec, base_recall: float | None) -> Reference:
    """Return the reference point: the measured base's recall and a margin, the tolerated loss.

    Where the study bounds the loss more tightly, that bound is tolerated and nothing above it.
    """
    tolerated = spec.reference.knowledge_loss
    if spec.max_knowledge_loss is not None:
        # A point has to be below the reference, and the bound itself is allowed.
        tolerated = min(tolerated, math.nextafter(spec.max_knowledge_loss, 1))
    return Reference(
        recall=(base_recall or 0.0) + spec.reference.recall_margin, knowledge_loss=tolerated
    )


def load_study_scenario(spec: StudySpec) -> Scenario:
    """Return the scenario of a study: its files read anew, or what is packaged in their place.

    Probes and facts to rehearse are by default those of the pocket model's world for that model,
    and for any other those that large models know in common.

    Raises:
        FactsError: If a file cannot be used, or two of them ask the same.
    """
    auto: ShippedKnowledge = "pocket" if spec.model == POCKET else "common"
    return load_scenario(
        _path(spec.facts),
        Knowledge(
            shipped=auto if spec.knowledge == "auto" else spec.knowledge,
            probes=_path(spec.probes),
            probes_mode=spec.probes_mode,
            rehearsal=_path(spec.rehearsal_facts),
        ),
    )


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def facts_digest(scenario: Scenario) -> str:
    """Return what identifies a scenario in a study's fingerprint."""
    return scenario.digest[:12]


def _facts_asked(verdicts: Iterable[Verdict]) -> tuple[Fact, ...]:
    """Return the new facts as the base was asked them: the facts file may be gone since."""
    facts: dict[str, Fact] = {}
    for verdict in verdicts:
        prompt = verdict.answer.prompt
        if prompt.phrasing == "trained":
            answer, *aliases = prompt.accepted
            facts[prompt.subject] = Fact(
                question=prompt.question, answer=answer, aliases=tuple(aliases)
            )
        elif prompt.templated and not facts[prompt.subject].templated:
            facts[prompt.subject] = replace(facts[prompt.subject], templated=True)
    return tuple(facts.values())


def _facts_set_aside(
    spec: StudySpec, record: StudyRecord, new: Sequence[Fact]
) -> tuple[Fact, ...]:
    """Return the facts that the base knew; none if the file is no longer the study's."""
    try:
        scenario = load_study_scenario(spec)
    except FactsError:
        return ()
    if facts_digest(scenario) != record.fingerprint["facts"]:
        return ()
    asked = {fact.id for fact in new}
    return tuple(fact for fact in scenario.facts if fact.id not in asked)
