"""Shows in a terminal how a study stands while it runs: progress, best so far, and workers."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.wording import say_duration, say_estimate, show_text
from analysis.workforce import StudyStatus, WorkerStatus

_SILENT_SECONDS = 60  # beyond this a worker's silence is shown


def show_status(status: StudyStatus) -> RenderableType:
    """Return a study's progress and a row for each of its workers."""
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items() if count)
    line = f"{status.study}: {status.ended} of {status.total} trials ended"
    if counts:
        line += f" ({counts})"
    if status.trials_per_hour is not None:
        line += f", {status.trials_per_hour:,.0f} an hour"
    if status.seconds_left:
        line += f", about {say_duration(status.seconds_left)} left"
    parts: list[RenderableType] = [Text(show_text(line))]
    if status.best is not None:
        best = status.best
        parts.append(
            Text(
                f"best so far: trial {best.trial} after {best.epoch} epochs, recall "
                f"{say_estimate(best.measurement.recall)}, knowledge loss "
                f"{say_estimate(best.measurement.knowledge_loss)}"
            )
        )
    if status.workers:
        parts.append(_show_workers(status.workers))
    else:
        parts.append(Text("no worker is at it", style="dim"))
    return Group(*parts)


def _show_workers(workers: tuple[WorkerStatus, ...]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("worker", "device", "trials", "tokens/s", "memory", "load", "doing"):
        is_number = title in ("tokens/s", "memory", "load")
        table.add_column(title, justify="right" if is_number else "left")
    for worker in workers:
        host, process, _ = worker.owner.rsplit(":", 2)
        state, rate = worker.state, worker.tokens_per_second
        table.add_row(
            Text(show_text(f"{host}:{process}")),
            Text(show_text(worker.device)),
            _say_trials(worker),
            "–" if rate is None else f"{rate:,.0f}",
            _say_memory(worker),
            "–" if state is None or state.load is None else f"{state.load:.1f}",
            Text(show_text(_say_activity(worker))),
        )
    return table


def _say_trials(worker: WorkerStatus) -> str:
    numbers = ", ".join(map(str, worker.trials)) or "–"
    return f"{numbers} (of {worker.slots} slots)" if len(worker.trials) < worker.slots else numbers


def _say_memory(worker: WorkerStatus) -> str:
    state = worker.state
    if state is None or state.memory_bytes is None:
        return "–"
    limit = state.memory_limit_bytes
    used = f"{state.memory_bytes / 1e9:.1f}"
    said = f"{used} GB" if limit is None else f"{used} of {limit / 1e9:.0f} GB"
    peak = state.peak_memory_bytes
    return said if peak is None else f"{said}, peak {peak / 1e9:.1f}"


def _say_activity(worker: WorkerStatus) -> str:
    activity = "starting" if worker.state is None else worker.state.activity
    if worker.silent_seconds > _SILENT_SECONDS:
        activity += f", silent for {say_duration(worker.silent_seconds)}"
    return activity
