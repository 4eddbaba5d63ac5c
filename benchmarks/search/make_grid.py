"""Trains and asks every recipe of both grids: `python -m benchmarks.search.make_grid`.

It takes about two hours of two cores and can be stopped at any time: run again, it goes on where
it was. What is done so far lies in `runs/grid`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import multiprocessing.pool
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.search.grid_table import (
    Cell,
    Head,
    Row,
    decode_row,
    encode_row,
    write_table,
)
from benchmarks.search.grids import ASKED_EPOCHS, SAMPLINGS, GridSpace, make_grid_spaces
from benchmarks.workload import oscars, pocket_base
from data.measurements import MEASUREMENT_VERSION
from data.recipes import Recipe
from objectives.judges.matcher import Matcher
from objectives.learn import Learning, Measured, Turn
from objectives.models.machine.devices import available_cores, use_threads
from search_spaces.recipe_space import settings_of
from study.lengths import longest_qna_tokens

WORK = Path("runs/grid")
MAX_RANK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Recipes that are trained side by side; all have equally many steps per epoch."""

    recipes: tuple[tuple[int, Recipe], ...]  # each with its number in the grid
    searched: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a job."""

    rows: tuple[Row, ...]
    training_seconds: float
    asking_seconds: float


_learning: Learning | None = None


def main() -> int:
    """Make what is missing of both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.make_grid")
    parser.add_argument("--processes", type=int, default=available_cores())
    parser.add_argument("--slots", type=int, default=10, help="recipes side by side; default: 10")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.processes, _start, (arguments.slots,)) as pool:
        try:
            for grid in _spaces():
                _make(grid, arguments.slots, pool)
        except KeyboardInterrupt:
            print("\nstopped; run it again to go on", file=sys.stderr)
            return 130
    return 0


def _spaces() -> tuple[GridSpace, ...]:
    base = pocket_base()
    return make_grid_spaces(base, longest_qna_tokens=longest_qna_tokens(oscars(), base))


def _make(grid: GridSpace, slots: int, pool: multiprocessing.pool.Pool) -> None:
    """Do what is not done yet of one grid, and write its table."""
    recipes = grid.recipes()
    made_from = _digest(grid)
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{grid.name}-{made_from}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    jobs_done = [json.loads(line) for line in lines]
    rows = [decode_row(row) for job in jobs_done for row in job["rows"]]
    training = sum(job["training_seconds"] for job in jobs_done)
    asking = sum(job["asking_seconds"] for job in jobs_done)
    missing = set(range(len(recipes))) - {row.number for row in rows}
    begun, first = time.perf_counter(), len(rows)
    with path.open("a") as file:
        for done in pool.imap_unordered(_run, _jobs(grid, missing, slots)):
            values = asdict(done) | {"rows": [encode_row(row) for row in done.rows]}
            file.write(json.dumps(values) + "\n")
            file.flush()
            rows += done.rows
            training += done.training_seconds
            asking += done.asking_seconds
            spent = time.perf_counter() - begun
            left = spent / (len(rows) - first) * (len(recipes) - len(rows))
            print(
                f"{grid.name}: {len(rows)} of {len(recipes)} recipes, {left / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )
    head = Head(
        grid=grid.name,
        made_from=made_from,
        base_recall=pool.apply(_base_recall),
        training_seconds=training,
        asking_seconds=asking,
    )
    print(write_table(head, rows))


def _digest(grid: GridSpace) -> str:
    """Return what tells one grid from another: space, samplings, model, facts, measurement."""
    parts = (
        grid,
        SAMPLINGS,
        ASKED_EPOCHS,
        pocket_base().digest,
        oscars().digest,
        MEASUREMENT_VERSION,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _jobs(grid: GridSpace, missing: set[int], slots: int) -> Iterator[Job]:
    """Yield the missing recipes, as many as there are slots at a time."""

    def work(numbered: tuple[int, Recipe]) -> tuple[object, ...]:
        _, recipe = numbered
        return (recipe.formats, recipe.rehearsal, recipe.cutoff, recipe.paraphrases)

    todo = sorted(
        ((n, recipe) for n, recipe in enumerate(grid.recipes()) if n in missing), key=work
    )
    for _, alike in groupby(todo, key=work):
        group = list(alike)
        for start in range(0, len(group), slots):
            yield Job(recipes=tuple(group[start : start + slots]), searched=tuple(grid.searched))


def _start(slots: int) -> None:
    """Load the model in a process of its own; the processes share the cores."""
    global _learning
    use_threads(1)
    _learning = Learning(pocket_base(), oscars(), judge=Matcher(), slots=slots, max_rank=MAX_RANK)


def _base_recall() -> float:
    assert _learning is not None
    recall = _learning.base.measurement.recall.value
    assert recall is not None
    return recall


def _run(job: Job) -> Done:
    assert _learning is not None
    bank = _learning.bank
    training = asking = 0.0
    for slot, (number, recipe) in enumerate(job.recipes):
        _learning.begin(slot, recipe, seed=number)
    cells: dict[int, list[Cell]] = {slot: [] for slot in range(len(job.recipes))}
    for epoch in range(1, ASKED_EPOCHS[-1] + 1):
        begun = time.perf_counter()
        going = [slot for slot in cells if bank.progress(slot).failure is None]
        training_slots = set(going)
        while training_slots:
            training_slots -= set(bank.step(sorted(training_slots)))
        training += time.perf_counter() - begun
        if epoch in ASKED_EPOCHS:
            begun = time.perf_counter()
            samplings = SAMPLINGS if epoch == ASKED_EPOCHS[-1] else ()
            alive = [slot for slot in going if bank.progress(slot).failure is None]
            turns = [
                Turn(slot=slot, noise_seed=job.recipes[slot][0], samplings=samplings)
                for slot in alive
            ]
            measured = _learning.measure(turns) if turns else []
            for slot, each in zip(alive, measured, strict=True):
                cells[slot] += map(_cell, each)
            asking += time.perf_counter() - begun
    rows = []
    for slot, (number, recipe) in enumerate(job.recipes):
        settings = settings_of(recipe)
        rows.append(
            Row(
                number=number,
                settings={name: settings[name] for name in job.searched},
                cells=tuple(cells[slot]),
                failure=bank.progress(slot).failure,
            )
        )
        bank.release(slot)
    return Done(rows=tuple(rows), training_seconds=training, asking_seconds=asking)


def _cell(measured: Measured) -> Cell:
    each = measured.measurement
    assert each.recall.value is not None
    assert each.knowledge_loss.value is not None
    return Cell(
        epoch=each.epoch,
        sampling=each.sampling.name,
        recall=each.recall.value,
        knowledge_loss=each.knowledge_loss.value,
        trained_tokens=each.trained_tokens,
        generated_tokens=each.generated_tokens,
    )


if __name__ == "__main__":
    sys.exit(main())
