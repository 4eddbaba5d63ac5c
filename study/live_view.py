"""Shows a running study in the terminal: slots, best so far, what was pruned, time left."""

from __future__ import annotations

import time
from collections import Counter, deque
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis.wording import say_duration, say_estimate, say_formats, say_learning_rate, show_text
from data.measurements import Measurement
from data.recipes import Recipe
from storage.records import Ending
from study.watching import Effort, RunningTrial

_REFRESH_SECONDS = 0.25
_EVENTS_SHOWN = 8


class LiveView:
    """A watcher that draws on a terminal; on anything else it prints one line per ended trial."""

    def __init__(self, console: Console, *, trials: int, ended: int) -> None:
        self._console = console
        self._trials = trials
        self._ended_before = ended
        self._begun = time.monotonic()
        self._drawn = 0.0
        self._counts: Counter[Ending] = Counter()
        self._events: deque[Text] = deque(maxlen=_EVENTS_SHOWN)
        self._best: tuple[int, Measurement] | None = None
        self._running: list[RunningTrial] = []
        self._note = ""
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveView:
        """Start drawing."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing and leave the terminal clean."""
        self._live.stop()

    def announce(self, note: str) -> None:
        """Show what is being done outside of trials."""
        self._note = note
        if self._console.is_terminal:
            self._draw()
        else:
            self._console.print(Text(note), soft_wrap=True)

    def trial_started(self, number: int, recipe: Recipe, *, resumed: bool) -> None:
        """Note the start of a trial."""
        self._note = ""
        if resumed:
            self._add(Text(f"trial {number} goes on from where it was interrupted"))

    def trial_measured(self, number: int, measurement: Measurement) -> None:
        """Remember the measurement if it is the best so far: highest recall minus loss."""
        if self._best is None or _merit(measurement) > _merit(self._best[1]):
            self._best = (number, measurement)

    def trial_ended(self, number: int, state: Ending, reason: str | None) -> None:
        """Note the end of a trial."""
        self._counts[state] += 1
        style = {"complete": "green", "pruned": "yellow", "failed": "red"}[state]
        self._add(Text(f"trial {number} {state}" + (f": {reason}" if reason else ""), style=style))

    def warned(self, problem: str) -> None:
        """Leave a line about a problem behind."""
        self._console.print(Text(f"warning: {problem}", style="yellow"), soft_wrap=True)

    def stopped_early(self, reason: str) -> None:
        """Leave a line about the reason behind."""
        self._console.print(Text(reason), soft_wrap=True)

    def sitting_ended(self, effort: Effort) -> None:
        """Leave a line about speed behind."""
        if effort.trained_tokens == 0:
            return
        rate = effort.trained_tokens / max(1e-9, effort.training_seconds)
        padding = (
            "" if effort.padding_share is None else f", {effort.padding_share:.0%} of it padding"
        )
        self._console.print(
            Text(
                f"{effort.trained_tokens:,} tokens trained in "
                f"{say_duration(effort.training_seconds)} ({rate:,.0f} a second, "
                f"{effort.slots} at once{padding}); asked in "
                f"{say_duration(effort.asking_seconds)}",
                style="dim",
            ),
            soft_wrap=True,
        )

    def stepped(self, running: list[RunningTrial]) -> None:
        """Draw the slots, a few times a second at most."""
        self._running = running
        if self._console.is_terminal and time.monotonic() - self._drawn > _REFRESH_SECONDS:
            self._draw()

    def _add(self, event: Text) -> None:
        self._events.append(event)
        if not self._console.is_terminal:
            self._console.print(event, soft_wrap=True)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        ended = self._ended_before + self._counts.total()
        line = Table.grid(padding=(0, 1))
        line.add_row(
            f"{ended} of {self._trials} trials",
            ProgressBar(total=self._trials, completed=ended, width=30),
            ", ".join(f"{count} {state}" for state, count in sorted(self._counts.items())),
            self._time_left(),
        )
        parts: list[RenderableType] = [line]
        if self._best is not None:
            number, best = self._best
            parts.append(
                Text(
                    f"best so far: trial {number}, recall {say_estimate(best.recall)}, "
                    f"knowledge loss {say_estimate(best.knowledge_loss)}"
                )
            )
        if self._running:
            parts.append(self._show_slots())
        parts += self._events
        if self._note:
            parts.append(Text(f"{self._note} …", style="dim"))
        return Group(*parts)

    def _show_slots(self) -> Table:
        table = Table(box=None, header_style="dim", pad_edge=False)
        for title in ("trial", "epoch", "loss", "recall", "lost", "rate", "rank", "formats"):
            table.add_column(title, justify="left" if title == "formats" else "right")
        for trial in self._running:
            last = trial.last
            table.add_row(
                str(trial.number),
                f"{trial.epoch}/{trial.recipe.epochs}",
                "–" if trial.loss_nats is None else f"{trial.loss_nats:.2f}",
                "–" if last is None else say_estimate(last.recall).split(" (")[0],
                "–" if last is None else say_estimate(last.knowledge_loss).split(" (")[0],
                say_learning_rate(trial.recipe.learning_rate),
                str(trial.recipe.rank),
                show_text(say_formats(trial.recipe)),
            )
        return table

    def _time_left(self) -> str:
        """Return an estimate from the trials that ended in this sitting; none before the first."""
        done = self._counts.total()
        if done == 0:
            return ""
        seconds = time.monotonic() - self._begun
        left = max(0, self._trials - self._ended_before - done)
        return f"about {say_duration(seconds / done * left)} left"


def _merit(measurement: Measurement) -> float:
    recall, loss = measurement.recall.value, measurement.knowledge_loss.value
    return float("-inf") if recall is None or loss is None else recall - loss
