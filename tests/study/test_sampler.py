"""Points are drawn from the study's seed and the trial's index, and from nothing else."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.grid import Grid
from storage.database import open_storage
from study.sampler import STARTUP_TRIALS, SamplerName, SeededSampler
from study.seeds import derive_seed

METHODS: tuple[SamplerName, ...] = get_args(SamplerName)


def make_study(
    seed: int, method: SamplerName = "tpe", *, grid: Grid | None = None
) -> optuna.Study:
    sampler = SeededSampler(seed, method, grid=grid)
    return optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)


def choose(trial: optuna.Trial) -> dict[str, Any]:
    trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    trial.suggest_int("rank", 1, 64)
    trial.suggest_float("alpha", 0.0, 1.0)
    return trial.params


def run(study: optuna.Study, trials: int) -> list[dict[str, Any]]:
    """Run trials whose values follow from their settings."""
    chosen = []
    for _ in range(trials):
        trial = study.ask()
        settings = choose(trial)
        study.tell(trial, (settings["alpha"], settings["rank"] / 64))
        chosen.append(settings)
    return chosen


def test_start_up_points_never_repeat_and_differ_within_a_trial() -> None:
    points = run(make_study(0), STARTUP_TRIALS)
    assert len({tuple(point.values()) for point in points}) == STARTUP_TRIALS
    # One random stream per setting: with a shared one, equal ranges would give equal values.
    study = make_study(0)
    trial = study.ask()
    assert trial.suggest_float("a", 0, 1) != trial.suggest_float("b", 0, 1)


def test_a_restart_goes_on_instead_of_beginning_again() -> None:
    whole = run(make_study(3), 8)
    study = make_study(3)
    first = run(study, 4)
    study.sampler = SeededSampler(3)  # as a new process has it
    assert first + run(study, 4) == whole


def test_four_workers_at_once_draw_the_start_up_points_that_one_would(tmp_path: Path) -> None:
    alone = run(make_study(3), STARTUP_TRIALS)
    url = f"sqlite:///{tmp_path / 'study.db'}"

    def work(_: int) -> dict[int, dict[str, Any]]:
        with closing(open_storage(url)) as storage:
            study = optuna.load_study(study_name="s", storage=storage, sampler=SeededSampler(3))
            trials = [study.ask() for _ in range(STARTUP_TRIALS // 4)]
            return {trial.number: choose(trial) for trial in trials}

    with closing(open_storage(url)) as storage:
        optuna.create_study(study_name="s", storage=storage, directions=["maximize", "minimize"])
    with ThreadPoolExecutor(4) as pool:
        drawn = {
            number: point for part in pool.map(work, range(4)) for number, point in part.items()
        }
    assert [drawn[number] for number in range(STARTUP_TRIALS)] == alone


def test_three_sittings_of_ten_draw_what_one_of_thirty_would() -> None:
    whole = run(make_study(3), 30)
    study = make_study(3)
    parts = []
    for _ in range(3):
        study.sampler = SeededSampler(3)
        parts += run(study, 10)
    assert parts == whole


@pytest.mark.parametrize("method", [method for method in METHODS if method != "grid"])
def test_every_method_goes_on_after_a_restart_as_if_there_had_been_none(
    method: SamplerName,
) -> None:
    trials = STARTUP_TRIALS + 6
    whole = run(make_study(3, method), trials)
    study = make_study(3, method)
    first = run(study, STARTUP_TRIALS + 2)
    study.sampler = SeededSampler(3, method)
    assert first + run(study, trials - len(first)) == whole
    assert len({tuple(point.values()) for point in whole}) == trials, "no point twice"
    assert run(make_study(4, method), 3) != whole[:3]


def test_a_grid_visits_every_cell_once_whoever_asks() -> None:
    grid: Grid = {"rank": (4, 8), "packing": ("separate", "joined"), "rslora": (False, True)}
    study = make_study(0, "grid", grid=grid)
    visited = []
    for number in range(8):
        if number == 4:
            study.sampler = SeededSampler(0, "grid", grid=grid)  # another process goes on
        trial = study.ask()
        visited.append(
            tuple(trial.suggest_categorical(name, values) for name, values in grid.items())
        )
        study.tell(trial, (0.5, 0.5))
    assert sorted(visited) == sorted(product(*grid.values()))


def test_a_grid_goes_with_its_method_alone() -> None:
    with pytest.raises(ValueError, match="grid"):
        SeededSampler(0, "grid")
    with pytest.raises(ValueError, match="grid"):
        SeededSampler(0, "tpe", grid={"rank": (4, 8)})


def test_tpe_draws_the_same_point_from_the_same_trials() -> None:
    one, two = (run(make_study(5), STARTUP_TRIALS + 4) for _ in range(2))
    assert one == two
    assert run(make_study(6), STARTUP_TRIALS + 4) != one


def test_tpe_learns_from_what_it_was_told() -> None:
    study = make_study(0)
    points = run(study, STARTUP_TRIALS + 20)
    # Both objectives ask for a large alpha or a small rank; drawn blindly the means are near 0.5.
    merits = [point["alpha"] - point["rank"] / 64 for point in points]
    early, late = merits[:STARTUP_TRIALS], merits[STARTUP_TRIALS:]
    assert sum(late) / len(late) > sum(early) / len(early) + 0.1


def test_a_seed_is_the_hash_of_study_seed_index_and_purpose() -> None:
    digest = hashlib.sha256(b"7/3/training").digest()
    assert derive_seed(7, 3, "training") == int.from_bytes(digest[:4], "big")


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_purposes_and_neighbours_have_their_own_seeds(study_seed: int, index: int) -> None:
    seeds = {
        derive_seed(study_seed, index, "training"),
        derive_seed(study_seed, index, "noise"),
        derive_seed(study_seed, index, "sampler"),
        derive_seed(study_seed, index + 1, "training"),
    }
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
