"""A grid as a world to search in: what a trial may choose, what each step costs, what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna
from optuna.trial import TrialState

from analysis.points import Reference
from benchmarks.search.grid_table import Cell, GridTable
from data.front import hypervolume, non_dominated
from data.recipes import GREEDY
from search_spaces.settings import Value
from study.rung_vectors import is_inside

RECALL_MARGIN, TOLERATED_LOSS = 0.05, 0.5  # the reference point of studies


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A trial's place in the grid: `row` by its number, and where the trial would end."""

    row: int
    epochs: int
    sampling: str


class World:
    """One grid, with its cost in seconds at the mean speeds at which it was made."""

    def __init__(self, table: GridTable) -> None:
        """Read what there is to choose from the table itself."""
        rows = [row for row in table.rows if row.cells]
        self.values: dict[str, tuple[Value, ...]] = {
            name: tuple(dict.fromkeys(row.settings[name] for row in rows))
            for name in rows[0].settings
        }
        for name, values in self.values.items():
            if not isinstance(values[0], str):
                self.values[name] = tuple(sorted(values))
        self._rows = {tuple(row.settings.values()): row.number for row in table.rows}
        self._cells = {
            (row.number, cell.epoch, cell.sampling): cell for row in rows for cell in row.cells
        }
        self.epochs = tuple(sorted({epoch for _, epoch, _ in self._cells}))
        self.samplings = tuple(
            dict.fromkeys(sampling for _, _, sampling in self._cells if sampling)
        )
        self.reference = Reference(
            recall=table.head.base_recall + RECALL_MARGIN, knowledge_loss=TOLERATED_LOSS
        )
        self.training_tokens = sum(max(cell.trained_tokens for cell in row.cells) for row in rows)
        generated = sum(cell.generated_tokens for cell in self._cells.values())
        self._seconds_per_token = table.head.training_seconds / self.training_tokens
        self._seconds_per_generated = table.head.asking_seconds / generated
        self.seconds = table.head.training_seconds + table.head.asking_seconds
        self.points = [(c.recall, c.knowledge_loss) for c in self._cells.values()]
        self.hypervolume = self.measure(self.points)

    @property
    def last_epoch(self) -> int:
        """Return the epoch after which all samplings were asked."""
        return self.epochs[-1]

    def cell(self, row: int, epoch: int, sampling: str = GREEDY.name) -> Cell | None:
        """Return what was measured there; None if training had failed before."""
        return self._cells.get((row, epoch, sampling))

    def row_of(self, settings: Mapping[str, Value]) -> int:
        """Return the number of the recipe with these settings."""
        return self._rows[tuple(settings[name] for name in self.values)]

    def measure(self, points: list[tuple[float, float]]) -> float:
        """Return the hypervolume of points within the reference."""
        return hypervolume(points, (self.reference.recall, self.reference.knowledge_loss))

    def front(self) -> list[tuple[float, float]]:
        """Return the grid's front within the reference, by falling recall."""
        inside = [point for point in self.points if is_inside(self.reference, *point)]
        return [inside[i] for i in non_dominated(inside)]

    def suggest(self, trial: optuna.Trial, *, epochs: int | None = None) -> Choice:
        """Return what a trial chooses; numbers are chosen by their position in their list.

        Only after the last epoch a sampling has a say; before, the grid was asked greedily.

        Args:
            trial: The trial.
            epochs: Fixed, or None where the trial chooses them too.
        """
        settings: dict[str, Value] = {}
        for name, values in self.values.items():
            if isinstance(values[0], str):
                settings[name] = str(trial.suggest_categorical(name, values))
            else:
                settings[name] = values[trial.suggest_int(name, 0, len(values) - 1)]
        if epochs is None:
            epochs = self.epochs[trial.suggest_int("epochs", 0, len(self.epochs) - 1)]
        sampling = GREEDY.name
        if epochs == self.last_epoch:
            sampling = str(trial.suggest_categorical("sampling", self.samplings))
        return Choice(row=self.row_of(settings), epochs=epochs, sampling=sampling)

    def training_seconds(self, tokens: int) -> float:
        """Return how long training so many tokens takes."""
        return tokens * self._seconds_per_token

    def asking_seconds(self, cell: Cell) -> float:
        """Return how long the asking of a cell takes."""
        return cell.generated_tokens * self._seconds_per_generated


@dataclass(slots=True)
class Ledger:
    """What a search has spent and found so far.

    `history` has a line per asking: the shares of the grid's seconds and of its tokens that were
    spent, and of its hypervolume that was found. `idle_to_the_end` counts trials that went to
    their end without answering more than the reference.
    """

    world: World
    seconds: float = 0.0
    tokens: int = 0
    asked: int = 0
    idle_to_the_end: int = 0
    points: list[tuple[float, float]] = field(default_factory=list)
    history: list[tuple[float, float, float]] = field(default_factory=list)
    _hypervolume: float = 0.0

    def train(self, tokens: int) -> None:
        """Pay for training."""
        self.tokens += tokens
        self.seconds += self.world.training_seconds(tokens)

    def ask(self, cell: Cell, *, counts: bool) -> None:
        """Pay for asking; with `counts` the answer is a point that was found."""
        self.seconds += self.world.asking_seconds(cell)
        if counts:
            self.points.append((cell.recall, cell.knowledge_loss))
            found = self.world.measure(self.points)
            self._hypervolume = max(found, self._hypervolume)
            # The front is all that counts, and it is short.
            self.points = [self.points[i] for i in non_dominated(self.points)]
        self.history.append(
            (
                self.seconds / self.world.seconds,
                self.tokens / self.world.training_tokens,
                self._hypervolume / self.world.hypervolume,
            )
        )

    def ended(self, state: TrialState, last: Cell | None) -> None:
        """Count a trial that has ended, at the greedy cell `last` if it was not pruned."""
        if state == TrialState.COMPLETE and last is not None:
            self.idle_to_the_end += last.recall <= self.world.reference.recall

    def is_complete(self, budget: float) -> bool:
        """Return whether a share of the grid's cost is spent, or everything was found."""
        spent = self.seconds / self.world.seconds
        return spent >= budget or self._hypervolume >= self.world.hypervolume * (1 - 1e-9)
