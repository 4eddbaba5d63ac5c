"""`remember judge check` and `run`: how far a judge agrees with people, what it would change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.findings import Findings
from analysis.points import Point
from analysis.wording import (
    MISSING,
    say_counted,
    say_estimate,
    say_label,
    say_sampling,
    say_share,
    show_text,
)
from data.agreement import (
    Agreement,
    NotCorrectable,
    correct_recall,
    measure_agreement,
    why_not_correctable,
)
from data.label_files import LabelledAnswer, labels_digest, load_labels
from data.measurements import Estimate, Label, Measurement
from objectives.judges.base import Judge, judge_answers
from objectives.judges.cached import MemoryCache
from storage.database import StudyStorage
from storage.reader import read_said, read_verdicts
from storage.recorder import Recorder
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
from study.spec import ConfigurationError
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

_SHOWN_DISAGREEMENTS = 50


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
    parts: list[RenderableType] = [_show_agreement(checked.name, agreement)]
    if name is None:
        basis, of_what, enough = (
            agreement,
            "these answers",
            "They are enough to correct the recall of a study whose models gave them: --name it.",
        )
        corrections: list[_Correction] = []
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
        parts.append(_show_corrections(corrections))
    if disagreements:
        parts.extend((Text(), _show_disagreements(disagreements)))
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
        results.print(_show_rejudged(judged, other.name), soft_wrap=True)
    if not judged:
        raise NothingUsable(f"no measurement of study {place.name!r} can be judged again")


_Correction = tuple[Point, Estimate]


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
) -> list[_Correction]:
    """Return the front with its recall corrected; nothing if it cannot be, or another judged."""
    corrected: list[_Correction] = []
    for point in findings.front:
        judges = {verdict.judge for verdict in read_verdicts(opened, point.measurement_id)}
        if judges != {judge.name}:
            continue
        try:
            corrected.append((point, correct_recall(point.measurement.recall, agreement)))
        except NotCorrectable:
            return []
    return corrected


def _show_agreement(judge: str, agreement: Agreement) -> Table:
    table = _table("judge", show_text(judge), header=False)
    unjudged = f", {agreement.unjudged} unjudged" if agreement.unjudged else ""
    table.add_row("labelled answers", f"{agreement.judged} judged{unjudged}")
    table.add_row(
        "people say right",
        f"{agreement.true_positives} accepted, {agreement.false_negatives} refused",
    )
    table.add_row(
        "people say wrong",
        f"{agreement.true_negatives} refused, {agreement.false_positives} accepted",
    )
    table.add_row("sensitivity", say_estimate(agreement.sensitivity))
    table.add_row("specificity", say_estimate(agreement.specificity))
    table.add_row("kappa", _say_signed(agreement.kappa, "{:.3f}"))
    p_value = agreement.bias_p_value
    said = (
        ""
        if p_value is None
        else f"; McNemar's p {'< 0.001' if p_value < 0.001 else f'{p_value:.3f}'}"
    )
    table.add_row("bias", f"{_say_signed(agreement.bias, '{:+.3f}')}{said}")
    return table


def _show_disagreements(disagreements: Sequence[tuple[LabelledAnswer, Label]]) -> RenderableType:
    table = Table(box=None, header_style="bold", pad_edge=False, row_styles=["", "dim"])
    for title in ("question", "expected", "answer", "people", "judge"):
        table.add_column(title, overflow="fold")
    for each, label in disagreements[:_SHOWN_DISAGREEMENTS]:
        table.add_row(
            Text(show_text(each.question)),
            Text(show_text(each.accepted[0])),
            Text(show_text(each.text)),
            say_label(each.label),
            say_label(label),
        )
    left = len(disagreements) - _SHOWN_DISAGREEMENTS
    if left <= 0:
        return table
    return Group(table, Text(f"and {left} more; --json lists all", style="dim"))


def _show_corrections(corrections: Sequence[_Correction]) -> Table:
    table = _table("trial", "epochs", "recall", "corrected")
    for point, corrected in corrections:
        recall = point.measurement.recall
        table.add_row(
            str(point.trial), str(point.epoch), say_estimate(recall), say_estimate(corrected)
        )
    return table


def _show_rejudged(judged: Sequence[Rejudged], judge: str) -> RenderableType:
    table = _table("trial", "epochs", "sampling", "recall", "now", "loss", "now", "changed")
    for each in judged:
        kept, was, now = each.kept, each.kept.measurement, each.measurement
        named = kept.purpose if kept.trial is None else str(kept.trial)
        table.add_row(
            f"{named} {kept.purpose}" if kept.purpose in ("confirm", "repeat") else named,
            str(was.epoch),
            Text(say_sampling(was.sampling)),
            say_share(was.recall.value),
            say_share(now.recall.value),
            say_share(was.knowledge_loss.value),
            say_share(now.knowledge_loss.value) if each.judged_probes else "as before",
            f"{each.changed} of {len(each.verdicts)}",
        )
    changed = sum(each.changed for each in judged)
    legend = f"now: by {show_text(judge)}; {changed} verdicts changed."
    odd = sum(not each.reproduces for each in judged)
    if odd:
        legend += (
            f" {say_counted(odd, 'measurement')} cannot be reproduced from what is stored: the "
            "program scored otherwise then."
        )
    return Group(table, Text(legend, style="dim"))


def _table(*titles: str, header: bool = True) -> Table:
    table = Table(
        box=None, show_header=header, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0)
    )
    if header:
        for title in titles:
            table.add_column(title)
    else:
        table.add_row(*titles)
    return table


def _say_signed(estimate: Estimate, form: str) -> str:
    """Return a figure that may be below 0 with its interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return MISSING
    value, low, high = map(form.format, (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


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
