"""Turns a study file into a running study: scenario, model, space, storage, worker."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import optuna

from analysis.findings import Findings, find
from analysis.points import Point, Reference, recommend
from analysis.verdict import Subject
from data.facts import Fact, FactsError
from data.formats import write_document
from data.measurements import MEASUREMENT_VERSION, Verdict
from data.probes import MIN_KNOWN_PER_RING
from data.prompts import put_question
from data.recipes import GREEDY, TRAINING_FORMATS
from data.scenarios import Scenario, load_scenario
from objectives.judges.matcher import Matcher
from objectives.learn import Learning
from objectives.models.base import BaseModel
from objectives.models.load import load_base_model
from search_spaces.recipe_space import RecipeSpace
from search_spaces.starting_points import fit_to_space, starting_points
from storage.database import (
    StudyNotFound,
    StudyStorage,
    holds_studies,
    open_storage,
    show_url,
    sqlite_file,
)
from storage.leases import LeaseBook, describe_this_process
from storage.reader import read_study, read_verdicts
from storage.recorder import Recorder
from storage.records import StudyRecord
from study.adapter_shelf import AdapterShelf
from study.pruning import SuccessiveHalving
from study.sampler import SeededSampler
from study.spec import ConfigurationError, StudySpec
from study.watching import Watcher
from study.worker import LEASE_SECONDS, Worker, WorkerSettings

DATABASE_FILE = "remember.db"
OSCARS_2023 = "oscars-2023"  # what a study without a facts file is named after
# Trained tokens per new fact at the first rung: enough to have begun to answer.
FIRST_RUNG_TOKENS_PER_FACT = 350


class NothingToLearn(Exception):
    """The base model knows every fact already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a study lives: its name, its folder, its database."""

    name: str
    folder: Path
    storage_url: str

    @property
    def shown_storage_url(self) -> str:
        """Return the database's URL without its password."""
        return show_url(self.storage_url)

    @property
    def has_database(self) -> bool:
        """Return whether there is a database that holds studies; it is not made to find out."""
        return holds_studies(self.storage_url)

    @property
    def adapters(self) -> Path:
        """Return the folder of the front's adapters."""
        return self.folder / "adapters"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the running trials' checkpoints."""
        return self.folder / "checkpoints"


def find_place(spec: StudySpec) -> Place:
    """Return where a study of this spec lives; nothing is created.

    Raises:
        ConfigurationError: If the output folder cannot be written to.
    """
    facts = OSCARS_2023 if spec.facts is None else Path(spec.facts).stem
    derived = re.sub(r"[^\w .-]+", "-", f"{facts}-{Path(spec.model).name}").strip(" .-")
    name = spec.name or derived[:100] or "study"
    out = Path(spec.out)
    folder = (out / name).absolute()
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise ConfigurationError(
            f"out: {spec.out!r} cannot be a folder ({error.strerror}); name another with --out"
        ) from error
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigurationError(
            f"out: {spec.out!r} cannot be written to ({existing} is not a writable folder); "
            "name another folder with --out"
        )
    return Place(
        name=name,
        folder=out / name,
        storage_url=spec.storage or f"sqlite:///{out / DATABASE_FILE}",
    )


def open_place(place: Place) -> StudyStorage:
    """Return the opened storage, after making the output folder if it lies there.

    Raises:
        ConfigurationError: If the folder cannot be made.
        StorageError: If the database cannot be used.
    """
    out, file = place.folder.parent, sqlite_file(place.storage_url)
    if file is not None and file.parent == out:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"out: {str(out)!r} cannot be made ({error.strerror}); name another with --out"
            ) from error
    return open_storage(place.storage_url)


def read_finished(spec: StudySpec, place: Place) -> StudyRecord | None:
    """Return the study if just this spec has run to its end, without loading a model."""
    if not place.has_database:
        return None
    with closing(open_place(place)) as storage:
        try:
            record = read_study(storage, place.name)
        except StudyNotFound:
            return None
        ended = sum(trial.state != "running" for trial in record.trials)
        is_finished = (
            ended == len(record.trials) == spec.trials
            and StudySpec.model_validate_json(record.config) == spec
            # The file may have changed under its name.
            and record.fingerprint["facts"] == _facts_digest(_load_scenario(spec))
            and not _unconfirmed(find_in(storage, place))
        )
    return record if is_finished else None


def run_study(
    spec: StudySpec,
    place: Place,
    watcher: Watcher,
    *,
    should_stop: Callable[[], bool],
    announce: Callable[[str], None],
) -> bool:
    """Run or resume a study; return False when it was asked to stop before its end.

    Everything that can be wrong with the input is found before anything is written.

    Raises:
        NothingToLearn: If the base knows every fact.
    """
    scenario = _load_scenario(spec)
    announce(f"loading {spec.model}")
    base = load_base_model(spec.model)
    check_lengths(scenario, base)
    space = spec.recipe_space(
        hidden_size=int(base.model.config.hidden_size), context_tokens=base.context_tokens
    )
    slots = _stored_slots(place) or spec.slots
    announce(f"asking {base.name} what it knows")
    learning = Learning(base, scenario, judge=Matcher(), slots=slots, max_rank=space.max_rank)
    if not learning.facts:
        raise NothingToLearn(
            f"{base.name} already knows all {len(scenario.facts)} facts; nothing to teach"
        )
    if learning.base.measurement.knowledge_loss.value is None:
        raise ConfigurationError(
            f"model: {base.name} knows fewer than {MIN_KNOWN_PER_RING} probes of every ring, so "
            "that its knowledge loss cannot be measured; name a model that knows more"
        )
    with closing(open_place(place)) as storage:
        recorder = Recorder(storage, place.name)
        recorder.create_study_record(
            config=spec.model_dump_json(),
            fingerprint=_fingerprint(spec, scenario, base, space),
            slots=slots,
            seed=spec.seed,
        )
        place.folder.mkdir(parents=True, exist_ok=True)
        recorder.record_measurement(
            None, learning.base.measurement, learning.base.verdicts, purpose="base"
        )
        reference = reference_of(spec, learning.base.measurement.recall.value)
        worker = Worker(
            settings=WorkerSettings(
                study=place.name,
                trials=spec.trials,
                seed=spec.seed,
                space=space,
                presets=tuple(spec.sampling),
                pruner=_make_pruner(spec, reference, len(learning.facts)),
                checkpoints=place.checkpoints,
            ),
            study=_open_optuna_study(storage, spec, place.name, space, base),
            storage=storage,
            learning=learning,
            recorder=recorder,
            shelf=AdapterShelf(storage, recorder, place.name, place.adapters, reference),
            watcher=watcher,
            should_stop=should_stop,
        )
        if not worker.run():
            return False
        announce("asking the best adapters the test wordings")
        record = read_study(storage, place.name)
        subject = Subject(model=base.name, new=learning.facts, known=learning.already_known)
        return _confirm(storage, recorder, learning, find(record, subject, reference), should_stop)


def reference_of(spec: StudySpec, base_recall: float | None) -> Reference:
    """Return the reference point: the measured base's recall and a margin, the tolerated loss."""
    return Reference(
        recall=(base_recall or 0.0) + spec.reference.recall_margin,
        knowledge_loss=spec.reference.knowledge_loss,
    )


def check_lengths(scenario: Scenario, base: BaseModel) -> None:
    """Refuse a fact that the model cannot read, and an answer longer than any that is generated.

    Raises:
        FactsError: Naming the fact, its tokens and the bound.
    """
    for position, fact in enumerate(scenario.facts, start=1):
        for name in TRAINING_FORMATS:
            text = write_document(fact.question, fact.answer, fact.statement, name)
            tokens = len(base.encode_document(text))
            if tokens > base.context_tokens:
                raise FactsError(
                    f"answer: fact {position} ({fact.question[:40]!r}…) is {tokens} tokens long "
                    f"as a training text, and {base.name} reads at most {base.context_tokens}; "
                    "shorten it"
                )
        prompt = put_question(fact.question, "qna")
        text = write_document(fact.question, fact.answer, fact.statement, "qna")
        tokens = len(base.encode_document(text)) - len(base.encode_prompt(prompt))
        if tokens > GREEDY.max_new_tokens:
            raise FactsError(
                f"answer: that of fact {position} ({fact.answer[:40]!r}…) is {tokens} tokens long "
                f"and at most {GREEDY.max_new_tokens} are generated; shorten it"
            )


def _load_scenario(spec: StudySpec) -> Scenario:
    return load_scenario(None if spec.facts is None else Path(spec.facts))


def _facts_digest(scenario: Scenario) -> str:
    return scenario.digest[:12]


def _stored_slots(place: Place) -> int | None:
    """Return the number of slots that the study was made with; None if there is no study yet."""
    if not place.has_database:
        return None
    with closing(open_place(place)) as storage:
        try:
            return read_study(storage, place.name).slots
        except StudyNotFound:
            return None


def _fingerprint(
    spec: StudySpec, scenario: Scenario, base: BaseModel, space: RecipeSpace
) -> dict[str, str]:
    """Return what may not change within a study, each part short enough to be shown."""
    return {
        "facts": _facts_digest(scenario),
        "model": f"{base.name} {base.digest[-12:]}",
        "space": _digest(repr(space)),
        "sampling": _digest(json.dumps(spec.sampling)),
        "pruner": _digest(spec.pruner.model_dump_json()),
        "reference": _digest(spec.reference.model_dump_json()),
        "judge": spec.judge,
        "measurement": str(MEASUREMENT_VERSION),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _make_pruner(spec: StudySpec, reference: Reference, facts: int) -> SuccessiveHalving | None:
    if not spec.pruner.enabled:
        return None
    return SuccessiveHalving(
        reference=reference,
        first_rung_tokens=spec.pruner.first_rung_tokens or FIRST_RUNG_TOKENS_PER_FACT * facts,
        reduction=spec.pruner.reduction,
        minimum_entries=spec.pruner.minimum_entries,
    )


def _open_optuna_study(
    storage: StudyStorage, spec: StudySpec, name: str, space: RecipeSpace, base: BaseModel
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=["maximize", "minimize"],
        sampler=SeededSampler(spec.seed),
        load_if_exists=True,
    )
    study.set_metric_names(["judged recall", "knowledge loss"])
    if not study.get_trials(deepcopy=False):
        for point in starting_points(int(base.model.config.hidden_size)):
            settings = fit_to_space(point, space, tuple(spec.sampling))
            study.enqueue_trial(settings, user_attrs={"starting_point": point.name})
    return study


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
    )


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
        scenario = _load_scenario(spec)
    except FactsError:
        return ()
    if _facts_digest(scenario) != record.fingerprint["facts"]:
        return ()
    asked = {fact.id for fact in new}
    return tuple(fact for fact in scenario.facts if fact.id not in asked)


def _confirm(
    storage: StudyStorage,
    recorder: Recorder,
    learning: Learning,
    findings: Findings,
    should_stop: Callable[[], bool],
) -> bool:
    """Ask the recommended members everything, test wordings included, from their saved files.

    They are at most three: the one recommended, and the best with and without rehearsal. Return
    False when asked to stop before all were asked.
    """
    record, leases = findings.record, LeaseBook(storage)
    for point in _unconfirmed(findings):
        if should_stop():
            return False
        assert point.adapter is not None
        learning.bank.load(0, Path(point.adapter))
        measured = learning.measure_everything(
            0, epoch=point.epoch, trained_tokens=point.measurement.trained_tokens
        )
        learning.bank.release(0)
        lease = leases.acquire(
            record.name, point.trial, owner=describe_this_process(), seconds=LEASE_SECONDS
        )
        if lease is not None:
            recorder.record_measurement(
                lease,
                measured.measurement,
                measured.verdicts,
                purpose="confirm",
                adapter=point.adapter,
            )
            leases.release(lease)
    return True


def _unconfirmed(findings: Findings) -> list[Point]:
    """Return the recommended members whose adapter is there and was not asked everything yet."""
    done = {
        (confirmed.trial, confirmed.measurement.epoch)
        for trial in findings.record.trials
        for confirmed in trial.measurements
        if confirmed.purpose == "confirm"
    }
    candidates = (
        findings.recommended,
        recommend(findings.front_with_rehearsal),
        recommend(findings.front_without_rehearsal),
    )
    adapters = {(p.trial, p.epoch): p for p in candidates if p is not None}
    return [
        point
        for key, point in adapters.items()
        if key not in done and point.adapter is not None and Path(point.adapter).is_dir()
    ]
