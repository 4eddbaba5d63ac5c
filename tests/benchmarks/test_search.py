"""Searches replayed on a grid small enough to work out by hand, and the shipped tables."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from benchmarks.search.grid_table import (
    TABLES,
    Cell,
    GridTable,
    Head,
    Row,
    read_table,
    write_table,
)
from benchmarks.search.importance import effects
from benchmarks.search.methods import METHODS, Method, nearest_start, order_by_fronts, search
from benchmarks.search.world import World
from search_spaces.settings import Value

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

RECALLS = {(8, 1e-3): 0.25, (8, 1e-2): 0.5, (32, 1e-3): 0.75, (32, 1e-2): 0.85}


def make_table() -> GridTable:
    """Return four recipes after one and two epochs, the last under two samplings.

    Recall and loss grow from the first epoch to the second; a hot sampling recalls less.
    """
    rows = []
    for number, (rank, rate) in enumerate(product((8, 32), (1e-3, 1e-2))):
        recall = RECALLS[rank, rate]
        seen = ((1, "greedy", recall / 2), (2, "greedy", recall), (2, "hot", recall - 0.25))
        rows.append(
            Row(
                number=number,
                settings={"rank": rank, "learning_rate": rate},
                cells=tuple(
                    Cell(
                        epoch=epoch,
                        sampling=sampling,
                        recall=value,
                        knowledge_loss=0.1 * number * epoch,
                        trained_tokens=10_000 * epoch,
                        generated_tokens=500,
                    )
                    for epoch, sampling, value in seen
                ),
            )
        )
    head = Head(
        grid="small", made_from="", base_recall=0.0, training_seconds=80.0, asking_seconds=24.0
    )
    return GridTable(head=head, rows=tuple(rows))


def test_a_grid_has_the_hypervolume_and_the_costs_of_its_cells() -> None:
    world = World(make_table())
    assert world.values == {"rank": (8, 32), "learning_rate": (1e-3, 1e-2)}
    # Recall 0.25 at loss 0, 0.5 at 0.2, 0.75 at 0.4; 0.85 at 0.6 is beyond what is tolerated.
    # After one epoch 0.25 at 0.1, 0.375 at 0.2 and 0.425 at 0.3 are beaten.
    assert world.front() == [(0.75, 0.4), (0.5, 0.2), (0.25, 0.0)]
    assert world.hypervolume == pytest.approx(0.7 * 0.1 + 0.45 * 0.2 + 0.2 * 0.2)
    assert world.training_seconds(10_000) == pytest.approx(10.0)  # 80 s for 80,000 tokens
    cell = world.cell(0, 1)
    assert cell is not None
    assert world.asking_seconds(cell) == pytest.approx(2.0)  # 24 s for 12 askings of 500 tokens


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_pays_for_what_it_does_and_finds_no_more_than_there_is(
    method: Method,
) -> None:
    world = World(make_table())
    ledger = search(method, world, 0, budget=1.0, starts=[{"rank": 1, "epochs": 1}])
    costs = [cost for cost, _, _ in ledger.history]
    found = [found for _, _, found in ledger.history]
    assert costs == sorted(costs)
    assert found == sorted(found)
    assert 0 < found[-1] <= 1 + 1e-9
    assert ledger.seconds == pytest.approx(ledger.tokens / 1000 + len(ledger.history) * 2.0)


def test_ours_stops_as_soon_as_it_has_everything() -> None:
    world = World(make_table())
    method = next(method for method in METHODS if method.name == "ours")
    ledger = search(method, world, 1, budget=50.0, starts=[])
    assert ledger.history[-1][2] == pytest.approx(1)
    assert ledger.history[-2][2] < 1


def test_fronts_come_one_after_the_other_and_the_farthest_first_within_one() -> None:
    # The order best to worst, 3 1 2 0, is not its own inverse.
    points = [(0.1, 0.4), (0.5, 0.1), (0.6, 0.15), (0.9, 0.3)]
    assert order_by_fronts(points) == [3, 1, 2, 0]
    assert order_by_fronts([(0.2, 0.2)] * 3 + [(0.1, 0.3)])[-1] == 3


def test_a_starting_point_moves_to_the_nearest_values_of_a_grid() -> None:
    world = World(make_table())
    settings: dict[str, Value] = {
        "rank": 16.1,
        "learning_rate": 2e-3,
        "formats": "qna",
        "epochs": 3,
    }
    assert nearest_start(world, settings) == {"rank": 1, "learning_rate": 0, "epochs": 1}


def test_marginal_effects_are_shares_of_the_variance() -> None:
    found = {effect.setting: effect for effect in effects(make_table(), "recall")}
    assert set(found) == {"rank", "learning_rate", "epochs"}
    recalls = [value * part for value in RECALLS.values() for part in (0.5, 1.0)]
    mean = sum(recalls) / 8
    by_rank = (sum(recalls[:4]) / 4, sum(recalls[4:]) / 4)
    explained = (
        4
        * sum((each - mean) ** 2 for each in by_rank)
        / sum((recall - mean) ** 2 for recall in recalls)
    )
    assert found["rank"].means == pytest.approx({8: by_rank[0], 32: by_rank[1]})
    assert found["rank"].explained == pytest.approx(explained)


def test_a_table_survives_being_stored(tmp_path: Path) -> None:
    table = make_table()
    write_table(table.head, table.rows[::-1], tmp_path)
    assert read_table("small", tmp_path) == table


@pytest.mark.parametrize(("grid", "recipes"), [("brief", 144), ("default", 320)])
def test_the_shipped_grids_are_complete(grid: str, recipes: int) -> None:
    table = read_table(grid)
    assert [row.number for row in table.rows] == list(range(recipes))
    for row in table.rows:
        assert row.failure is None
        greedily = [cell.epoch for cell in row.cells if cell.sampling == "greedy"]
        assert greedily == [1, 2, 3, 4, 6, 8, 10, 12, 14, 16]
        assert len(row.cells) == 18
        assert all(0 <= cell.recall <= 1 and 0 <= cell.knowledge_loss <= 1 for cell in row.cells)
    assert (TABLES / f"{grid}.jsonl.xz").stat().st_size < 1_000_000
