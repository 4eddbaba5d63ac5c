"""Writes RESULTS.md, a table for every part of every benchmark, from the results' JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS

MARKDOWN = Path(__file__).parent / "RESULTS.md"

_INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks`, which measures; nothing here is asserted or typed in. The ways
of a part do the same work on one machine in one environment, with equally many threads that spin
as briefly (`GOMP_SPINCOUNT` is set for all), and are run in turn: first one run of each way, then
the next of each. Quoted are the median, the least and the most seconds for the whole work. Where
the work is the same many times over, slow ways did a share of it, and their time is divided by
that. *Against ours* is the median divided by that of our fastest way in the table: 2 means twice
as long.
"""

_ABOUT = {
    "training": """\
## Training 32 trials

The pocket model learns the 23 facts of the 2023 Oscars in three formats, with 32 recipes of rank
8, 16 and 32 and different alphas and learning rates. All ways train the same batches of tokens in
the same order; the outcome, the mean loss over the last epoch of the first two trials, must agree.
Only ours makes its batches from texts within the measured time. *bank, K = 1* against *PEFT loop*
shows our step alone against a plain PEFT step. Loading the model counts only where it is loaded
for every trial. The peak memory is that of a process which does nothing else, for one epoch.
""",
    "floor": """\
## Where a training step's time goes

A step of 16 of those trials, by torch's profiler. The floor is what its matrix products alone
would take at the rate at which this machine multiplies large matrices: no engine that computes
the same numbers in the same precision can be faster than that, and nothing else is counted.
""",
    "generation": """\
## Answers of 32 adapters

Each of 32 trained adapters is asked all prompts that a study searches on, greedily. All ways load
the same adapter files, which is not timed, stop where an answer ends, and judge what was answered,
which is. The outcome is the share of right answers, over what a way was asked.
""",
    "whole_study": """\
## A whole study to an equal best score

The score is recall - knowledge loss. Ours is `remember run` with its defaults: a process from its
start to the written report. *three scripts* is a process each for training (Trainer), asking
(prompt by prompt) and judging, per trial. *Optuna + Trainer* is one process that loads the model
for every trial, trains with Trainer and asks in batches; its start is not timed. Neither prunes:
Optuna refuses to in a study of two objectives. The default study is an easy one: a good starting
point comes among the first trials, which the peers train one by one and ours side by side, so that
all of its first trials are under way when the score is reached.
""",
    "growth": """\
## Growth

What eight trials take when there are more facts, more probes, or a larger model. The outcome of
training is the first trial's loss; that of probes the share which the first adapter answers as the
base does.
""",
    "losing": """\
## Where little is gained, or lost

A bank saves the overhead of small passes. Where one trial's pass is large already there is none to
save, and where neighbours differ much, padding and idle slots cost. The outcome is the first
trial's loss.
""",
    "scale": """\
## Many workers on one database

Processes without a model do to the database what real workers do, from taking a trial to telling
it: they ask (TPE, default space), record at every rung as many answers as the default study has,
read the study for its front, decide, and end the trial. Where they would train they sleep, for a
second a trial, so that few of them ask as often as many real ones do. Storage seconds are all that
a worker's main thread spends in calls of the storage and of Optuna; the asking lock, which only
one worker holds at a time, is part of them. The server runs on the same machine as all workers.
""",
    "storage_share": """\
## What the storage takes of the default study

The study of `remember run` with its defaults, on SQLite, in one process. Timed is all that its
main thread waits for in transactions of the database. The bar is 2 % of the trials' time. They are
trained side by side, so that their seconds in slots add up to more than those of the study.
""",
    "gpu": """\
## On a GPU

The 13B model has random 4-bit weights. "Share of the device's limit" is of the operations per
second that the device reaches in a product of two large matrices in bfloat16; a trained token
needs four per frozen weight, and unpacking the 4-bit weights does not count. Within 24 and 12 GiB
the same card was capped by PyTorch: it has the memory of a smaller card and its own speed. The
hours are for the study that the project began with (40 trials, 23 facts, 24 epochs), asked
everything four times a trial, nothing pruned; the goal is one night of 8 hours on a consumer card.
""",
}


def write_table(folder: Path = RESULTS, path: Path = MARKDOWN) -> None:
    """Write all results that are there, in the order in which they are explained."""
    sections = [_INTRODUCTION]
    for name, about in _ABOUT.items():
        file = folder / f"{name}.json"
        if file.exists():
            sections.append("\n".join(_describe(about, json.loads(file.read_text("utf-8")))))
    path.write_text("\n".join(sections), encoding="utf-8")


def _describe(about: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield about
    machine = dict(result["machine"])
    where = [f"{name.replace('_', ' ')} {value}" for name, value in machine.items()]
    yield f"Measured {result['measured']}: {', '.join(where)}."
    facts = dict(result["facts"])
    for part, timings in result["timings"].items():
        yield f"\n**{_capitalised(part)}**\n"
        yield from _tabulate(timings)
        own = [name for name in facts if name.startswith(f"{part}: ")]
        yield from _list({name.removeprefix(f"{part}: "): facts.pop(name) for name in own})
    for part, rows in result.get("rows", {}).items():
        yield f"\n**{_capitalised(part)}**\n"
        yield from _tabulate_workers(rows)
    for conclusion in result.get("conclusions", ()):
        yield f"\n{conclusion}"
    yield from _list(facts)
    yield ""


def _tabulate(timings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table's lines, without the columns that say nothing of any way."""
    ours = [timing["median_seconds"] for timing in timings if timing["is_ours"]]
    rows = [_tell(timing, min(ours, default=None)) for timing in timings]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join('---' for _ in columns)} |"
    for row in rows:
        yield f"| {' | '.join(row[name] for name in columns)} |"


def _tell(timing: Mapping[str, Any], fastest_of_ours: float | None) -> dict[str, str]:
    """Return a way's cells by the names of their columns."""
    seconds, median = timing["seconds"], timing["median_seconds"]
    outcomes = [outcome for outcome in timing["outcomes"] if outcome is not None]
    return {
        "way": f"**{timing['name']}**" if timing["is_ours"] else timing["name"],
        "settings": timing["settings"],
        "median s": _three_digits(median),
        "least–most s": f"{_three_digits(min(seconds))}–{_three_digits(max(seconds))}",
        "against ours": f"{median / fastest_of_ours:.2f}" if fastest_of_ours else "",
        "outcome": f"{statistics.median(outcomes):.4f}" if outcomes else "",
        "share measured": "all" if timing["share"] == 1 else f"{timing['share']:.1%}",
    }


def _tabulate_workers(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of worker processes, a row for each number of them."""
    columns = (
        "workers",
        "trials",
        "storage s per trial, median",
        "storage, 95 %",
        "of that waiting for the asking lock, median",
        "waiting, 95 %",
        "share of a trial of a minute",
        "trials per s",
        "sleeping alone would allow",
        "cores busy",
        "errors",
    )
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join('---' for _ in columns)} |"
    for row in rows:
        cells = (
            str(row["workers"]),
            str(row["trials"]),
            _three_digits(row["storage_median"]),
            _three_digits(row["storage_p95"]),
            _three_digits(row["lock_wait_median"]),
            _three_digits(row["lock_wait_p95"]),
            f"{row['share_of_a_minute']:.2%}",
            f"{row['trials_per_second']:.2f}",
            f"{row['sleeping_trials_per_second']:.2f}",
            f"{row['busy_share']:.0%}",
            str(row["errors"]),
        )
        yield f"| {' | '.join(cells)} |"


def _list(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts:
        yield ""
    for name, value in facts.items():
        yield f"- {name}: {value}"


def _three_digits(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
