"""`remember ask` and `measure`: put questions to a base model and an adapter side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from analysis.tables import show_samplings
from analysis.wording import say_estimate, say_left_out, say_phrasing, show_text
from data.measurements import Estimate
from data.prompts import Prompt, PromptStyle, put_question
from data.recipes import GREEDY, Sampling
from data.scoring import is_in_mean
from objectives.answers.generate import generate
from objectives.answers.request import BASE, Request
from objectives.bank.bank import Bank
from objectives.bank.loading import adapter_rank, require_base
from objectives.judges.matcher import Matcher
from objectives.learn import Learning, Measured
from objectives.models.base import BaseModel
from objectives.models.gguf.ggml_types import GgmlType
from objectives.models.sources import POCKET
from search_spaces.presets import PRESETS, find_preset, name_presets, without_penalties
from study.commands.application import (
    JsonOption,
    NameOption,
    OutOption,
    ProbesOption,
    RehearsalOption,
    RevisionOption,
    StorageOption,
    application,
    messages,
    results,
)
from study.commands.quantizations import Runtime, measure_quantizations, name_types
from study.commands.showing import TrialArgument, find_adapter, opened_study
from study.engine import load_engine
from study.lengths import check_lengths
from study.spec import ConfigurationError, StudySpec, load_spec
from study.stored import find_in, load_study_scenario


@application.command()
def ask(
    trial: TrialArgument,
    question: Annotated[str | None, typer.Argument(help="Without one, a prompt loop.")] = None,
    style: Annotated[
        PromptStyle, typer.Option(help="How the question is put to the model.")
    ] = "qna",
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
) -> None:
    """Ask the base model and the adapter of a trial the same question, side by side."""
    with opened_study(storage, name, out) as (opened, place):
        findings = find_in(opened, place)
        adapter = find_adapter(findings, trial).adapter
    assert adapter is not None
    base = load_engine(StudySpec.model_validate_json(findings.record.config))
    if style == "chat" and base.chat is None:
        raise ConfigurationError(
            f"style: 'chat' is not allowed; {base.name} has no chat template; choose another "
            "style, or make a study whose file names a chat_template"
        )
    bank = _bank_with(base, Path(adapter))
    if question is not None:
        _answer_both(base, bank, question, style)
        return
    messages.print("Type a question; an empty line ends.", style="dim")
    while True:
        try:
            line = results.input("? ") if sys.stdin.isatty() else sys.stdin.readline()
        except EOFError:
            return
        if not line.strip():
            return
        _answer_both(base, bank, line.strip(), style)


@application.command()
def measure(
    facts: Annotated[
        Path | None,
        typer.Argument(help="Facts file; default: the trial's, else the 2023 Oscars."),
    ] = None,
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
    adapter: Annotated[Path | None, typer.Option(help="Folder of a PEFT LoRA adapter.")] = None,
    any_base: Annotated[
        bool,
        typer.Option(
            "--any-base", help="Take the adapter if its shapes fit, though it names another base."
        ),
    ] = False,
    trial: Annotated[int | None, typer.Option(help="Or a trial whose adapter was kept.")] = None,
    presets: Annotated[
        str | None,
        typer.Option(
            help="Under these sampling presets instead: “all”, or names and families with commas."
        ),
    ] = None,
    quantizations: Annotated[
        str | None,
        typer.Option(
            help="On the base in these GGML types instead: “all”, or q4_0, q5_1, ... with commas."
        ),
    ] = None,
    runtime: Annotated[
        Runtime, typer.Option(help="What answers on a base that --quantizations names.")
    ] = "transformers",
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure recall and knowledge loss of a model, with any PEFT adapter or without."""
    if adapter is not None and trial is not None:
        raise ConfigurationError("adapter, trial: name one of them, not both")
    spec = load_spec(None, {"model": model or POCKET, "loading.revision": revision})
    if trial is not None:
        if model is not None or revision is not None:
            field = "revision" if model is None else "model"
            raise ConfigurationError(f"{field}, trial: a trial has its model; name one of them")
        with opened_study(storage, name, out) as (opened, place):
            findings = find_in(opened, place)
            kept = find_adapter(findings, trial).adapter
            assert kept is not None
            adapter = Path(kept)
            spec = StudySpec.model_validate_json(findings.record.config)
    samplings = None if presets is None else _samplings(presets)
    if samplings is not None and adapter is None:
        raise ConfigurationError("presets: they are measured of an adapter; name one, or a trial")
    types = _types(quantizations, runtime, adapter, presets)
    named = {"facts": facts, "probes": probes, "rehearsal_facts": rehearsal}
    spec = spec.model_copy(update={name: str(path) for name, path in named.items() if path})
    scenario = load_study_scenario(spec)
    base = load_engine(spec)
    check_lengths(scenario, base)
    rank = 1 if adapter is None else adapter_rank(adapter)
    if adapter is not None and not any_base:
        require_base(adapter, base.digest)  # before the base is asked what it knows
    learning = Learning(base, scenario, judge=Matcher(), slots=1, max_rank=rank)
    if adapter is not None:
        learning.bank.load(0, adapter, any_base=any_base)
    if samplings is not None:
        _measure_samplings(learning, samplings, as_json=as_json)
        return
    if types is not None and adapter is not None:
        measure_quantizations(
            learning, adapter, types, Matcher(), runtime=runtime, as_json=as_json
        )
        return
    measured = learning.base if adapter is None else learning.measure_everything(0)
    if as_json:
        results.print_json(json.dumps(_as_json(measured, learning, adapter)))
    else:
        _print_measured(measured, learning, adapter)


def _types(
    names: str | None, runtime: Runtime, adapter: Path | None, presets: str | None
) -> tuple[GgmlType, ...] | None:
    """Return the types to quantise the base to, or None if none are asked for."""
    if names is None:
        if runtime != "transformers":
            raise ConfigurationError(
                f"runtime: {runtime!r} goes with --quantizations; name them, too"
            )
        return None
    if adapter is None:
        raise ConfigurationError(
            "quantizations: they are measured of an adapter; name one, or a trial"
        )
    if presets is not None:
        raise ConfigurationError("presets, quantizations: name one of them, not both")
    return name_types(names, runtime)


def _samplings(names: str) -> tuple[Sampling, ...]:
    """Return the presets named, each followed by itself without its penalties if it has some."""
    if names == "all":
        slow = [name for name, preset in PRESETS.items() if preset.num_beams > 1]
        listed = [name for name in PRESETS if name not in slow]
        messages.print(
            f"{', '.join(slow)}: left out, because its many long beams take longer than all "
            "others together; name it to ask it"
        )
    else:
        listed = list(name_presets(map(str.strip, names.split(","))))
    presets = [find_preset(name) for name in listed]
    return tuple(
        sampling
        for preset in presets
        for sampling in (preset, without_penalties(preset))
        if sampling == preset or sampling.what_decides != preset.what_decides
    )


def _measure_samplings(
    learning: Learning, samplings: Sequence[Sampling], *, as_json: bool
) -> None:
    fitting = [sampling for sampling in samplings if learning.fits(sampling)]
    for sampling in samplings:
        if sampling not in fitting:
            messages.print(
                f"{sampling.name}: not measured; the model's context has no room for "
                f"{sampling.max_new_tokens} new tokens"
            )
    with messages.status(f"asking under {len(fitting)} samplings"):
        measured = learning.measure_samplings(0, fitting, noise_seed=0)
    if as_json:
        results.print_json(json.dumps({"samplings": [asdict(each) for each in measured]}))
    else:
        results.print(show_samplings(measured))


def _bank_with(base: BaseModel, adapter: Path) -> Bank:
    bank = Bank(base, slots=1, max_rank=adapter_rank(adapter))
    bank.load(0, adapter)
    return bank


def _answer_both(base: BaseModel, bank: Bank, question: str, style: PromptStyle) -> None:
    prompt = Prompt(
        text=put_question(question, style, base.chat),
        style=style,
        phrasing="test",
        subject="asked",
        question=question,
        accepted=("",),
    )
    requests = [Request(prompt=prompt, slot=slot, sampling=GREEDY, seed=0) for slot in (BASE, 0)]
    before, after = generate(base, requests, router=bank)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("base", Text(show_text(before.answer.text)))
    table.add_row("adapter", Text(show_text(after.answer.text), style="bold"))
    results.print(table)


def _print_measured(measured: Measured, learning: Learning, adapter: Path | None) -> None:
    measurement = measured.measurement
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("model", Text(learning.bank.base.name))
    table.add_row("adapter", Text("none" if adapter is None else str(adapter)))
    known = f"{len(learning.already_known)} known before, set aside"
    table.add_row("facts", f"{len(learning.facts)} new, {known}")
    table.add_row("recall", say_estimate(measurement.recall))
    for part in measurement.recall_parts:
        if part.style is None:
            table.add_row(f"  {say_phrasing(part.phrasing)}", say_estimate(part.recall))
    table.add_row("knowledge loss", say_estimate(measurement.knowledge_loss))
    for ring in measurement.rings:
        table.add_row(
            f"  {ring.ring}",
            f"{ring.lost} of {ring.known} known lost, {ring.gained} gained{say_left_out(ring)}",
        )
    drift = measurement.drift_nats
    table.add_row("drift", "not measured" if drift is None else f"{drift:+.3f} nats per token")
    results.print(table)


def _as_json(measured: Measured, learning: Learning, adapter: Path | None) -> dict[str, object]:
    measurement = measured.measurement
    return {
        "model": learning.bank.base.name,
        "adapter": None if adapter is None else str(adapter),
        "facts": {"new": len(learning.facts), "already_known": len(learning.already_known)},
        "recall": measurement.recall.value,
        "recall_interval": _interval(measurement.recall),
        "knowledge_loss": measurement.knowledge_loss.value,
        "knowledge_loss_interval": _interval(measurement.knowledge_loss),
        "recall_parts": [
            {"phrasing": part.phrasing, "style": part.style, "recall": part.recall.value}
            for part in measurement.recall_parts
        ],
        "rings": [
            {
                "ring": ring.ring,
                "asked": ring.asked,
                "known": ring.known,
                "lost": ring.lost,
                "gained": ring.gained,
                "in_mean": is_in_mean(ring),
            }
            for ring in measurement.rings
        ],
        "drift_nats": measurement.drift_nats,
        "fuar": measurement.fuar,
    }


def _interval(estimate: Estimate) -> list[float | None]:
    return [estimate.low, estimate.high]
