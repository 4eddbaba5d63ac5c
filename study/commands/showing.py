"""`remember status`, `show`, `report`: look at what a study has stored."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from analysis.examples import Example, choose_examples, pair_verdicts
from analysis.findings import Findings
from analysis.points import Point
from analysis.status_table import show_status
from analysis.tables import show_studies, show_trial
from storage.database import StudyStorage
from storage.reader import list_studies, read_verdicts
from storage.records import TrialRecord
from study.commands.application import (
    JsonOption,
    NameOption,
    OutOption,
    StorageOption,
    application,
    results,
)
from study.commands.running import describe, write_study_report
from study.place import Place, find_place, open_place
from study.spec import ConfigurationError, load_spec
from study.standing import standing_in
from study.stored import find_in

_WATCHING_SECONDS = 2.0

TrialArgument = Annotated[int, typer.Argument(help="Number of the trial.")]


@contextmanager
def opened_study(
    storage: str | None, name: str | None, out: Path | None
) -> Iterator[tuple[StudyStorage, Place]]:
    """Open the database and find the asked study, or the newest one when none is named.

    Raises:
        ConfigurationError: If there is no database or no study.
    """
    flags = {"storage": storage, "name": name, "out": None if out is None else str(out)}
    place = find_place(load_spec(None, flags))
    if not place.has_database:
        raise ConfigurationError(
            f"storage: there is no database at {place.shown_storage_url}; run a study first, or "
            "name its --storage or --out"
        )
    with closing(open_place(place)) as opened:
        if name is None:
            studies = list_studies(opened)
            if not studies:
                raise ConfigurationError(
                    f"name: {place.shown_storage_url} holds no study; run one with `remember run`"
                )
            newest = max(studies, key=lambda study: study.created_at)
            place = find_place(load_spec(None, flags | {"name": newest.name}))
        yield opened, place


def find_trial(findings: Findings, number: int) -> TrialRecord:
    """Return a trial of a study.

    Raises:
        ConfigurationError: Naming the trials there are.
    """
    for trial in findings.record.trials:
        if trial.number == number:
            return trial
    numbers = [trial.number for trial in findings.record.trials]
    there = "it has no trials yet"
    if numbers == [*range(len(numbers))] != []:
        there = f"its trials are 0 to {numbers[-1]}"
    elif numbers:  # the numbers between are those of free points
        there = f"its trials are {', '.join(map(str, numbers))}"
    raise ConfigurationError(
        f"trial: study {findings.record.name!r} has no trial {number}; {there}"
    )


def find_adapter(findings: Findings, number: int) -> Point:
    """Return the point of a trial whose adapter is kept: the recommended one, else the last.

    Raises:
        ConfigurationError: If none is kept.
    """
    find_trial(findings, number)
    kept = [p for p in findings.points if p.trial == number and p.adapter is not None]
    if not kept:
        others = sorted({p.trial for p in findings.points if p.adapter is not None})
        raise ConfigurationError(
            f"trial: the adapter of trial {number} was not kept, because it is not on the front; "
            f"kept are those of trials {', '.join(map(str, others)) or 'none'}"
        )
    return max(kept, key=lambda point: (point == findings.recommended, point.epoch))


@application.command()
def status(
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Go on showing the study's workers and trials until none is at it."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the studies of a database, or tell how one stands with --name or --watch."""
    if watch and as_json:
        raise ConfigurationError("json: it does not go with --watch; leave one of the two out")
    with opened_study(storage, name, out) as (opened, place):
        if watch:
            _watch(opened, place)
            return
        if as_json:
            results.print_json(json.dumps(describe(find_in(opened, place), place)))
            return
        findings = None if name is None else find_in(opened, place)
        studies = [s for s in list_studies(opened) if name is None or s.name == name]
        results.print(show_studies(studies))
        if findings is not None:
            results.print(Text(findings.conclusion.sentence), soft_wrap=True)
            results.print(show_status(standing_in(opened, place.name)))


def _watch(storage: StudyStorage, place: Place) -> None:
    """Show a study's workers every few seconds, on a terminal in place, until none is there."""
    with Live(console=results, auto_refresh=False) if results.is_terminal else nullcontext() as at:
        while True:
            status = standing_in(storage, place.name)
            if at is None:
                results.print(show_status(status))
            else:
                at.update(show_status(status), refresh=True)
            if not status.workers:
                return
            time.sleep(_WATCHING_SECONDS)


@application.command()
def show(
    trial: TrialArgument,
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
) -> None:
    """Show a trial: its settings, its curve, and questions with the answers before and after."""
    with opened_study(storage, name, out) as (opened, place):
        findings = find_in(opened, place)
        record = find_trial(findings, trial)
        examples: tuple[Example, ...] = ()
        if record.searched and findings.record.base:
            before = read_verdicts(opened, findings.record.base.id)
            after = read_verdicts(opened, record.searched[-1].id)
            examples = choose_examples(pair_verdicts(before, after), count=8)
        results.print(show_trial(record, findings.base, examples))


@application.command()
def report(storage: StorageOption = None, name: NameOption = None, out: OutOption = None) -> None:
    """Write report.html and RESULTS.md of a study again."""
    with opened_study(storage, name, out) as (opened, place):
        findings = find_in(opened, place)
        path = write_study_report(findings, opened, place)
        results.print(Text(str(path)), soft_wrap=True)
