"""`remember judge`: answers to label, how far a judge agrees with the labels, judging again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from analysis.files import write_whole
from analysis.findings import Findings
from analysis.judge_tables import (
    Correction,
    show_agreement,
    show_corrections,
    show_disagreements,
    show_rejudged,
)
from analysis.wording import say_counted
from data.agreement import (
    MIN_LABELLED,
    Agreement,
    NotCorrectable,
    correct_recall,
    measure_agreement,
    why_not_correctable,
)
from data.label_files import LabelledAnswer, labels_digest, load_labels
from data.label_sheets import SHEET_ENDINGS, choose_rows, write_sheet
from data.measurements import Estimate, Label, Measurement, Verdict
from objectives.judges.base import Judge, judge_answers
from objectives.judges.cached import MemoryCache
from storage.database import StudyStorage
from storage.reader import read_said, read_verdicts
from storage.recorder import Recorder
from storage.records import TrialRecord
from study.commands.application import (
    JsonOption,
    NameOption,
    NothingUsable,
    OutOption,
    StorageOption,
    application,
    messages,
    results,
)
from study.commands.showing import opened_study
from study.judge_making import LateCache, judge_named
from study.place import Place
from study.rejudging import Rejudged, judge_again
from study.spec import ConfigurationError, JudgeSpec, StudySpec
from study.stored import find_in

judge_application = typer.Typer(help="Who decides whether an answer is right, and how well.")
application.add_typer(judge_application, name="judge")

JudgeOption = Annotated[
    str,
    typer.Option(
        "--judge",
        help="“matcher”, “model:NAME”, “cascade:NAME”, or a study file with a [judge].",
    ),
]


@judge_application.command()
def sheet(
    file: Annotated[
        Path, typer.Argument(help="What to write, by its ending as CSV, TSV or JSONL.")
    ],
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
    answers: Annotated[int, typer.Option(min=1, help="How many answers at most.")] = MIN_LABELLED,
    seed: Annotated[int, typer.Option(help="Fixes which answers, and their order.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file.")] = False,
) -> None:
    """Write a sheet of a study's answers for people to label, as `judge check` reads it.

    They are drawn alike from all that its trials said about the new facts.
    """
    ending = file.suffix.lower()
    if ending not in SHEET_ENDINGS:
        raise ConfigurationError(
            f"file: the ending of {str(file)!r} is not known; name a file that ends in "
            f"{', '.join(SHEET_ENDINGS)}"
        )
    if file.is_dir() or (file.exists() and not force):
        raise ConfigurationError(
            f"file: {str(file)!r} is there already and may hold people's verdicts; name another, "
            "or overwrite it with --force"
        )
    with opened_study(storage, name, out) as (opened, place):
        findings = find_in(opened, place)
        rows = choose_rows(
            _verdicts_about(opened, findings.record.trials), count=answers, seed=seed
        )
        spec = StudySpec.model_validate_json(findings.record.config)
    if not rows:
        raise ConfigurationError(
            f"name: no trial of study {place.name!r} has judged answers yet; let it run first"
        )
    text = write_sheet(rows, ending)
    try:
        write_whole(file, text)
    except OSError as error:
        raise ConfigurationError(
            f"file: {str(file)!r} cannot be written ({error.strerror}); name another"
        ) from error
    written = f"{file}: {say_counted(len(rows), 'answer')} of study {place.name!r}, no verdicts"
    if len(rows) < answers:
        written += "; there are no more that differ"
    if len(rows) < MIN_LABELLED:
        written += f". Correcting recall takes {MIN_LABELLED} or more"
    command = ["remember", "judge", "check", str(file), "--name", place.name]
    command += [] if storage is None else ["--storage", place.shown_storage_url]
    command += [] if out is None else ["--out", str(out)]
    results.print(
        Text(
            f"{written}.\nLet people write correct, incorrect or not_attempted in every row "
            "(UTF-8, columns unchanged), then run:\n"
            f"{shlex.join(command + _judge_flags(spec.judge))}"
        ),
        soft_wrap=True,
    )


@judge_application.command()
def check(
    labels: Annotated[
        Path,
        typer.Argument(help="CSV, TSV or JSONL with question, expected, answer and verdict."),
    ],
    judge: JudgeOption = "matcher",
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how far a judge agrees with answers that people have labelled.

    With --name the agreement is stored with that study, and its recall corrected by it.
    """
    if name is None and (storage is not None or out is not None):
        raise ConfigurationError(
            "name: it is missing; --storage and --out say where the study is that --name names"
        )
    labelled = load_labels(labels)
    checked = judge_named(judge, MemoryCache())
    verdicts = judge_answers(checked, [each.answer for each in labelled])
    given = [verdict.label for verdict in verdicts]
    agreement = _agreement(labelled, given)
    disagreements = [
        (each, label)
        for each, label in zip(labelled, given, strict=True)
        if (each.label == "correct") != (label == "correct") or label == "unjudged"
    ]
    shown: dict[str, object] = {"judge": checked.name, **_agreement_as_json(agreement)}
    parts: list[RenderableType] = [show_agreement(checked.name, agreement)]
    if name is None:
        basis, of_what, enough = (
            agreement,
            "these answers",
            "They are enough to correct the recall of a study whose models gave them: --name it.",
        )
        corrections: list[Correction] = []
    else:
        with opened_study(storage, name, out) as (opened, place):
            findings = find_in(opened, place)
            basis = _store(opened, place, checked, labelled, given, agreement)
            corrections = _corrections(opened, findings, checked, basis)
        of_what = f"those of {place.name!r}"
        enough = f"Recall can be corrected by {of_what}."
        shown |= {"study": place.name, "of_study": _agreement_as_json(basis)}
        parts.append(
            Text(
                f"{basis.judged + basis.unjudged} of the labelled answers are answers of study "
                f"{place.name!r}; stored with it."
            )
        )
    reason = why_not_correctable(basis)
    parts.append(
        Text(enough)
        if reason is None
        else Text(f"Recall cannot be corrected by {of_what}: {reason}.")
    )
    if corrections:
        parts.append(show_corrections(corrections))
    if disagreements:
        parts.extend((Text(), show_disagreements(disagreements)))
    if as_json:
        shown |= {
            "not_correctable": reason,
            "corrected": [
                {
                    "trial": point.trial,
                    "epoch": point.epoch,
                    "sampling": point.sampling.name,
                    "recall": _estimate_as_json(point.measurement.recall),
                    "corrected_recall": _estimate_as_json(corrected),
                }
                for point, corrected in corrections
            ],
            "disagreements": [
                {
                    "question": each.question,
                    "expected": list(each.accepted),
                    "answer": each.text,
                    "people": each.label,
                    "judge": label,
                }
                for each, label in disagreements
            ],
        }
        results.print_json(json.dumps(shown))
    else:
        results.print(Group(*parts), soft_wrap=True)
    if agreement.is_no_better_than_chance:
        raise NothingUsable(
            f"{checked.name} is of no use as a judge of such answers: its sensitivity and "
            "specificity add up to no more than 1"
        )


@judge_application.command()
def run(
    judge: JudgeOption = "matcher",
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a study's stored answers again and show both scores; its trials stay as they are."""
    cache = LateCache()
    other = judge_named(judge, cache)
    with opened_study(storage, name, out) as (opened, place):
        cache.keep_in(opened)
        record = find_in(opened, place).record
        if record.base is None:
            raise ConfigurationError(
                f"name: study {place.name!r} has no answers yet; let it run first"
            )
        running = sum(trial.state == "running" for trial in record.trials)
        if running:
            messages.print(
                f"{say_counted(running, 'trial')} not finished: only what is stored is judged"
            )
        recorder = Recorder(opened, place.name)
        judged: list[Rejudged] = []
        with messages.status(f"{other.name} judges {place.name}"):
            for each in judge_again(opened, record, other):
                labels = [verdict.label for verdict in each.verdicts]
                recorder.record_rejudgement(each.kept.id, labels, judge=other.name)
                judged.append(each)
    if as_json:
        listed = [_rejudged_as_json(each) for each in judged]
        results.print_json(
            json.dumps({"study": place.name, "judge": other.name, "measurements": listed})
        )
    else:
        results.print(show_rejudged(judged, other.name), soft_wrap=True)
    if not judged:
        raise NothingUsable(f"no measurement of study {place.name!r} can be judged again")


def _verdicts_about(opened: StudyStorage, trials: Sequence[TrialRecord]) -> Iterator[Verdict]:
    for trial in trials:
        for kept in trial.measurements:
            yield from read_verdicts(opened, kept.id)


def _judge_flags(judge: JudgeSpec) -> list[str]:
    """Return the flags that name a study's judge; a server's settings are in its study file."""
    if judge.kind == "matcher":
        return []
    if judge.model is None:
        return ["--judge", "STUDY.toml"]
    return ["--judge", f"{judge.kind}:{judge.model}"]


def _agreement(labelled: Sequence[LabelledAnswer], given: Sequence[Label]) -> Agreement:
    return measure_agreement(
        (each.label, label) for each, label in zip(labelled, given, strict=True)
    )


def _store(
    opened: StudyStorage,
    place: Place,
    judge: Judge,
    labelled: Sequence[LabelledAnswer],
    given: Sequence[Label],
    agreement: Agreement,
) -> Agreement:
    """Store an agreement with a study; return that over the answers the study's models gave."""
    said = {(question.strip(), text.strip()) for question, text in read_said(opened, place.name)}
    own = [
        (each, label)
        for each, label in zip(labelled, given, strict=True)
        if (each.question, each.text) in said
    ]
    of_study = _agreement([each for each, _ in own], [label for _, label in own])
    Recorder(opened, place.name).record_agreement(
        agreement, of_study=of_study, judge=judge.name, digest=labels_digest(labelled)
    )
    return of_study


def _corrections(
    opened: StudyStorage, findings: Findings, judge: Judge, agreement: Agreement
) -> list[Correction]:
    """Return the front with its recall corrected; nothing if it cannot be, or another judged."""
    corrected: list[Correction] = []
    for point in findings.front:
        judges = {verdict.judge for verdict in read_verdicts(opened, point.measurement_id)}
        if judges != {judge.name}:
            continue
        try:
            corrected.append((point, correct_recall(point.measurement.recall, agreement)))
        except NotCorrectable:
            return []
    return corrected


def _estimate_as_json(estimate: Estimate) -> dict[str, object]:
    return {"value": estimate.value, "interval": [estimate.low, estimate.high]}


def _agreement_as_json(agreement: Agreement) -> dict[str, object]:
    return {
        "judged": agreement.judged,
        "unjudged": agreement.unjudged,
        "true_positives": agreement.true_positives,
        "false_positives": agreement.false_positives,
        "false_negatives": agreement.false_negatives,
        "true_negatives": agreement.true_negatives,
        "sensitivity": _estimate_as_json(agreement.sensitivity),
        "specificity": _estimate_as_json(agreement.specificity),
        "kappa": _estimate_as_json(agreement.kappa),
        "bias": {**_estimate_as_json(agreement.bias), "p_value": agreement.bias_p_value},
    }


def _rejudged_as_json(rejudged: Rejudged) -> dict[str, object]:
    kept = rejudged.kept

    def scores(measurement: Measurement) -> dict[str, object]:
        return {
            "recall": _estimate_as_json(measurement.recall),
            "knowledge_loss": _estimate_as_json(measurement.knowledge_loss),
        }

    return {
        "trial": kept.trial,
        "purpose": kept.purpose,
        "repeat": kept.repeat,
        "epoch": kept.measurement.epoch,
        "sampling": kept.measurement.sampling.name,
        "before": scores(kept.measurement),
        "now": scores(rejudged.measurement),
        "verdicts": len(rejudged.verdicts),
        "changed": rejudged.changed,
        "judged_probes": rejudged.judged_probes,
        "reproduces": rejudged.reproduces,
    }
