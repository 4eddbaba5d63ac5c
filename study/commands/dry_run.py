"""`remember run --dry-run`: says what a study would take, and does nothing of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from analysis.wording import say_bytes, say_count, say_counted, say_duration, show_text
from study.commands.application import messages, results
from study.place import Place
from study.planning import MemoryPlan, StudyPlan, TimePlan, plan_study
from study.spec import EngineSpec, StudySpec


def print_plan(
    spec: StudySpec, place: Place, posts: Sequence[EngineSpec], *, as_json: bool
) -> None:
    """Print what a study would take, as words or as one JSON object."""
    plan = plan_study(
        spec, place, posts=posts, announce=lambda note: messages.print(Text(note, style="dim"))
    )
    if as_json:
        results.print_json(json.dumps(describe_plan(plan)), indent=2)
    else:
        results.print(Text(f"{show_text(plan.name)}: nothing is trained or written", style="bold"))
        results.print(show_plan(plan))
        for note in plan.notes:
            results.print(Text(note, style="dim"), soft_wrap=True)


def describe_plan(plan: StudyPlan) -> dict[str, object]:
    """Return a plan as the JSON object that `--json` prints; what was not measured is null.

    Memory is in bytes and time in seconds.
    """
    time = plan.time
    return asdict(plan) | {
        "memory": {
            name if name in ("slots", "rows", "is_spread") else f"{name}_bytes": value
            for name, value in asdict(plan.memory).items()
        },
        "time": {f"{name}_seconds": value for name, value in asdict(time).items()}
        | {"total_seconds": _total(time)},
    }


def show_plan(plan: StudyPlan) -> Table:
    """Return a plan as a table of words."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for title, words in (
        ("model", _say_model(plan)),
        ("memory", _say_weights(plan.memory)),
        ("", _say_training(plan.memory)),
        ("", _say_asking(plan.memory)),
        ("limit", _say_limit(plan.memory)),
        ("trials", _say_trials(plan)),
        ("time to train", say_duration(plan.time.train)),
        ("time to ask", say_duration(plan.time.ask)),
        ("time to judge", say_duration(plan.time.judge)),
        ("time in all", _say_total(plan.time)),
    ):
        table.add_row(title, Text(show_text(words)))
    return table


def _say_model(plan: StudyPlan) -> str:
    workers = "" if plan.workers == 1 else f", {plan.workers} workers"
    return (
        f"{plan.model}, {plan.parameters / 1e6:,.1f} million parameters, {plan.precision}, on "
        f"{plan.device}{workers}"
    )


def _say_weights(memory: MemoryPlan) -> str:
    return f"{say_bytes(memory.weights)} for the weights (estimated, as all of these)"


def _say_training(memory: MemoryPlan) -> str:
    where = ", on the fullest GPU" if memory.is_spread else ""
    peak = "" if memory.peak is None else f"; measured here{where}: {say_bytes(memory.peak)}"
    return (
        f"{say_bytes(memory.slot)} for each adapter that trains ({say_bytes(memory.adapter)} of "
        f"it for its weights and Adam's); {say_bytes(memory.training)} with "
        f"{memory.slots} at once{peak}"
    )


def _say_asking(memory: MemoryPlan) -> str:
    return (
        f"{say_bytes(memory.row)} for each prompt that is asked; {say_bytes(memory.asking)} with "
        f"{memory.rows} at once"
    )


def _say_limit(memory: MemoryPlan) -> str:
    if memory.limit is None:
        return "none"
    where = "all GPUs and main memory together" if memory.is_spread else "the device"
    return f"{say_bytes(memory.limit)} of {where}"


def _say_trials(plan: StudyPlan) -> str:
    return (
        f"{say_counted(plan.trials, 'trial')}, {plan.memory.slots} at once; "
        f"{say_counted(plan.facts, 'fact')} less those that the model knows; at most about "
        f"{say_count(plan.trained_tokens)} tokens to train and {say_count(plan.answers)} answers"
    )


def _say_total(time: TimePlan) -> str:
    total = _total(time)
    return say_duration(total) if total is None else f"at most about {say_duration(total)}"


def _total(time: TimePlan) -> float | None:
    """Return the sum of what was measured, None where training was not."""
    if time.train is None or time.ask is None:
        return None
    return time.train + time.ask + (time.judge or 0.0)
