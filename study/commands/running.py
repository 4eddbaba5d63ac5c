"""`remember run`: starts, resumes or shows a study, and writes its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from analysis.examples import choose_examples, pair_verdicts
from analysis.findings import Findings
from analysis.report import write_report
from analysis.resources import device_uses
from analysis.results_markdown import write_results
from analysis.tables import show_examples, show_front
from data.measurements import Verdict
from objectives.models.machine.devices import unused_gpu_remedy
from search_spaces.recipe_space import settings_of
from storage.database import StudyStorage, untested_kind
from storage.reader import read_sittings, read_verdicts
from study.commands.application import (
    NOTHING_USABLE,
    CrewFailed,
    Interrupted,
    JsonOption,
    NameOption,
    NothingUsable,
    OutOption,
    ProbesOption,
    RehearsalOption,
    RevisionOption,
    StorageOption,
    application,
    messages,
    results,
)
from study.commands.dry_run import print_plan
from study.commands.stop_signal import StopRequest, stop_signal
from study.crew import Crew, posts_on
from study.crew_view import CrewView
from study.dashboard.contents import refresh_dashboard
from study.engine import Post
from study.live_view import LiveView
from study.place import Place, find_place, open_place
from study.setting_up import run_study
from study.spec import EngineSpec, StudySpec, load_spec
from study.standing import Onlooker
from study.stored import find_in, is_finished, read_stored
from study.versions import versions_used


@application.command()
def run(
    facts: Annotated[
        Path | None,
        typer.Argument(
            help="CSV, TSV, JSONL or TOML with question and answer; default: the 2023 Oscars."
        ),
    ] = None,
    study: Annotated[Path | None, typer.Option(help="Study file (TOML).")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="“pocket”, a name that `remember models` lists, a model folder, a .gguf file, or "
            "a hub id; default: pocket."
        ),
    ] = None,
    revision: RevisionOption = None,
    probes: ProbesOption = None,
    rehearsal: RehearsalOption = None,
    trials: Annotated[
        int | None, typer.Option(help="The study's total of asked trials; default: 40.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            help="Trials trained at once, fixed when the study is made; default: tried out."
        ),
    ] = None,
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
    seed: Annotated[int | None, typer.Option(help="The study's seed; default: 0.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that share the study: one per GPU, or parts of the processor."
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(help="One process per device: “cuda:0,cuda:1”, or “all”."),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The most of each device's memory that may be used, such as 24GB or 12GiB.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what the study would take, of memory and of time; train and write nothing.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the settings that teach a model new facts at the least loss of old ones.

    The same command again resumes an interrupted study, shows a finished one, and with a larger
    --trials continues it.
    """
    spec = load_spec(
        study,
        {
            "facts": None if facts is None else str(facts),
            "model": model,
            "loading.revision": revision,
            "probes": None if probes is None else str(probes),
            "rehearsal_facts": None if rehearsal is None else str(rehearsal),
            "trials": trials,
            "slots": slots,
            "storage": storage,
            "name": name,
            "out": None if out is None else str(out),
            "seed": seed,
            "engine.memory_limit": memory_limit,
        },
    )
    place = find_place(spec)
    if dry_run:
        posts = posts_on(spec, workers=workers, devices=devices)
        print_plan(spec, place, posts, as_json=as_json)
        return
    if not is_finished(spec, place):
        _run(spec, place, workers=workers, devices=devices)
    with closing(open_place(place)) as opened:
        findings = find_in(opened, place)
        before = read_verdicts(opened, findings.record.base.id) if findings.record.base else ()
        report = write_study_report(findings, opened, place)
        refresh_dashboard(opened, place)
        if as_json:
            results.print_json(json.dumps(describe(findings, place)), indent=2)
        else:
            results.print(Text(findings.conclusion.sentence, style="bold"), soft_wrap=True)
            for more in (findings.kept_aside_sentence, findings.conclusion.rehearsal):
                if more:
                    results.print(Text(more), soft_wrap=True)
            results.print(Text(findings.conclusion.thresholds, style="dim"), soft_wrap=True)
            results.print()
            results.print(show_front(findings))
            if findings.recommended is not None:
                after = read_verdicts(opened, findings.recommended.measurement_id)
                examples = choose_examples(pair_verdicts(before, after), count=3)
                results.print()
                results.print(show_examples(examples))
            results.print(Text(f"\nreport: {report}"), soft_wrap=True)
    if not findings.front:
        raise NothingUsable(
            "no adapter of this study beats the reference point; more --trials may find one"
        )


def write_study_report(findings: Findings, storage: StudyStorage, place: Place) -> Path:
    """Write report.html and RESULTS.md into the study's folder; return the report's path."""

    def verdicts_of(measurement_id: int) -> Sequence[Verdict]:
        return read_verdicts(storage, measurement_id)

    versions = versions_used(read_sittings(storage, place.name))
    report = place.folder / "report.html"
    place.folder.mkdir(parents=True, exist_ok=True)
    write_report(findings, verdicts_of=verdicts_of, versions=versions, out=report)
    write_results(
        findings,
        verdicts_of=verdicts_of,
        versions=versions,
        out=place.folder / "RESULTS.md",
    )
    return report


def describe(findings: Findings, place: Place) -> dict[str, object]:
    """Return a study as the JSON object that `--json` prints."""
    states = [trial.state for trial in findings.record.trials]
    base = findings.base
    return {
        "study": findings.record.name,
        "storage": place.shown_storage_url,
        "answer": findings.conclusion.answer,
        "sentence": findings.conclusion.sentence,
        "kept_aside_recall": findings.kept_aside.value,
        "confirmed": [
            {
                "trial": point.trial,
                "epoch": point.epoch,
                "seeds": confirmation.seeds,
                "recall": confirmation.recall.value,
                "recall_interval": [confirmation.recall.low, confirmation.recall.high],
                "recall_on_search_wordings": confirmation.recall_on_search_wordings.value,
                "knowledge_loss": confirmation.knowledge_loss.value,
                "knowledge_loss_interval": [
                    confirmation.knowledge_loss.low,
                    confirmation.knowledge_loss.high,
                ],
            }
            for point in findings.members_to_confirm
            if (confirmation := findings.confirmation_of(point)).seeds
        ],
        "trials": {
            **{state: states.count(state) for state in ("complete", "pruned", "failed")},
            "measured": len(findings.points),
        },
        "base": None
        if base is None
        else {
            "recall": base.recall.value,
            "knowledge_loss": base.knowledge_loss.value,
            "recall_interval": [base.recall.low, base.recall.high],
            "known_probes": sum(ring.known for ring in base.rings),
        },
        "floors": [
            {
                "name": floor.name,
                "recall": floor.recall.value,
                "recall_interval": [floor.recall.low, floor.recall.high],
                "context_tokens": floor.context_tokens,
                "reason": floor.reason,
            }
            for floor in findings.record.floors
        ],
        "workers": [
            {
                "device": use.device,
                "slots": use.slots,
                "trained_tokens_per_second": use.trained_tokens_per_second,
                "peak_memory_bytes": use.peak_memory_bytes,
            }
            for use in device_uses(findings.sittings)
        ],
        "adapter_costs": [asdict(cost) for cost in findings.adapter_costs],
        "front": [
            {
                "trial": point.trial,
                "epoch": point.epoch,
                "recall": point.recall,
                "knowledge_loss": point.knowledge_loss,
                "recall_interval": [
                    point.measurement.recall.low,
                    point.measurement.recall.high,
                ],
                "knowledge_loss_interval": [
                    point.measurement.knowledge_loss.low,
                    point.measurement.knowledge_loss.high,
                ],
                "recommended": point == findings.recommended,
                "recipe": settings_of(point.recipe),
                "sampling": {
                    field: getattr(point.sampling, field)
                    for field in point.sampling.__dataclass_fields__
                },
                "adapter": point.adapter,
            }
            for point in findings.front
        ],
    }


def warn_of_untested(url: str) -> None:
    """Say that a kind of database was never tried with this program, if that is so."""
    kind = untested_kind(url)
    if kind is not None:
        messages.print(
            Text(
                f"warning: storage: {kind} is not tested with this program; PostgreSQL and SQLite "
                "are",
                style="yellow",
            ),
            soft_wrap=True,
        )


def _run(spec: StudySpec, place: Place, *, workers: int | None, devices: str | None) -> None:
    remedy = unused_gpu_remedy()
    if remedy is not None:
        messages.print(Text(f"warning: {remedy}", style="yellow"))
    warn_of_untested(place.storage_url)
    posts = posts_on(spec, workers=workers, devices=devices)
    messages.print(
        Text(
            f"watch it: remember dashboard, or optuna-dashboard {place.shown_storage_url} "
            f"--artifact-dir {place.artifacts}",
            style="dim",
        ),
        soft_wrap=True,
    )
    if len(posts) > 1:
        _run_crew(spec, place, posts)
        return
    stored = read_stored(place)
    ended = 0 if stored is None else stored.ended_trials
    with stop_signal() as stop, LiveView(messages, trials=spec.trials, ended=ended) as view:
        is_finished = run_study(
            spec,
            place,
            view,
            should_stop=stop,
            announce=view.announce,
            post=None if workers is None and devices is None else Post(engine=posts[0]),
        )
    if not is_finished:
        _end_stopped(stop)


def _run_crew(spec: StudySpec, place: Place, posts: Sequence[EngineSpec]) -> None:
    """Run a process for every post, and show how they stand.

    Raises:
        Interrupted: If they were stopped, once all have saved their trials.
        NothingUsable: If the model knows every fact already.
        CrewFailed: If no worker came to the end of the study.
    """
    with (
        closing(Onlooker(place)) as onlooker,
        stop_signal() as stop,
        CrewView(messages, onlooker) as view,
    ):
        crew = Crew(spec=spec, posts=posts, is_prepared=onlooker.sees_trials, say=view.say)
        code = crew.run(stop, view.look)
    if stop():
        _end_stopped(stop)
    if code == NOTHING_USABLE:
        raise NothingUsable("the workers found nothing to do; their own words above say why")
    if code:
        raise CrewFailed(code)


def _end_stopped(stop: StopRequest) -> None:
    assert stop.code is not None
    messages.print("every running trial is saved; run the same command again to go on")
    raise Interrupted(stop.code)
