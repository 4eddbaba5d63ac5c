"""Replays every way of searching on both grids: `python -m benchmarks.search.replay [--seeds 20]`.

Nothing is trained: a trial's values and costs are those of the table. Writes
`benchmarks/results/search.json` and `benchmarks/SEARCH.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import optuna

from benchmarks.measuring import RESULTS
from benchmarks.search.grid_table import read_table
from benchmarks.search.methods import METHODS, nearest_start, search
from benchmarks.search.page import write_page
from benchmarks.search.world import World
from search_spaces.starting_points import starting_points

GRIDS = ("brief", "default")
POCKET_WIDTH = 128
BUDGET = 0.2  # of the grid's cost: where a search ends that has not found everything
SHARES = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
ENOUGH = 0.99  # of the grid's hypervolume


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One search: what it had found at each share of the grid's cost, and when it had enough.

    `found` is the share of the grid's hypervolume at each of `SHARES`, `asked` the trials in all.
    The costs are shares of the grid's seconds, and of its trained tokens, at which `ENOUGH` was
    reached; None if it was not.
    """

    grid: str
    method: str
    seed: int
    found: tuple[float, ...]
    asked: int
    cost_of_enough: float | None
    tokens_of_enough: float | None
    idle_to_the_end: int


def main() -> None:
    """Replay everything and write what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.replay")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    jobs = [
        (grid, number, seed)
        for grid in GRIDS
        for number in range(len(METHODS))
        for seed in range(arguments.seeds)
    ]
    begun = time.perf_counter()
    replayed: list[Replayed] = []
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for one in pool.imap_unordered(_replay, jobs):
            replayed.append(one)
            spent = time.perf_counter() - begun
            left = spent / len(replayed) * (len(jobs) - len(replayed))
            print(
                f"\r{len(replayed)} of {len(jobs)} searches, {left / 60:.0f} min left  ",
                end="",
                file=sys.stderr,
                flush=True,
            )
    print(file=sys.stderr)
    results: dict[str, Any] = {
        "shares": SHARES,
        "enough": ENOUGH,
        "seeds": arguments.seeds,
        "searches": [asdict(one) for one in sorted(replayed, key=_order)],
    }
    (RESULTS / "search.json").write_text(json.dumps(results, indent=1) + "\n")
    print(write_page())


def _order(one: Replayed) -> tuple[int, int, int]:
    names = [method.name for method in METHODS]
    return GRIDS.index(one.grid), names.index(one.method), one.seed


@cache
def _world(grid: str) -> World:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return World(read_table(grid))


def _replay(job: tuple[str, int, int]) -> Replayed:
    grid, number, seed = job
    world, method = _world(grid), METHODS[number]
    starts = [
        nearest_start(world, {**point.settings, "sampling": point.sampling})
        for point in starting_points(POCKET_WIDTH)
        if not point.is_exact
    ]
    ledger = search(method, world, seed, budget=BUDGET, starts=starts)
    enough = next((line for line in ledger.history if line[2] >= ENOUGH), None)
    return Replayed(
        grid=grid,
        method=method.name,
        seed=seed,
        found=tuple(
            max((found for cost, _, found in ledger.history if cost <= share), default=0.0)
            for share in SHARES
        ),
        asked=ledger.asked,
        cost_of_enough=None if enough is None else enough[0],
        tokens_of_enough=None if enough is None else enough[1],
        idle_to_the_end=ledger.idle_to_the_end,
    )


if __name__ == "__main__":
    main()
