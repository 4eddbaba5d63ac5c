"""Points are drawn from the study's seed and the trial's index, and from nothing else."""

from __future__ import annotations

import hashlib
from typing import Any

import optuna
from hypothesis import given
from hypothesis import strategies as st

from study.sampler import STARTUP_TRIALS, SeededSampler
from study.seeds import derive_seed


def make_study(seed: int) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"], sampler=SeededSampler(seed))


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


def test_two_workers_at_once_draw_what_one_would() -> None:
    alone = run(make_study(3), 4)
    study = make_study(3)
    asked = []
    for worker in (SeededSampler(3), SeededSampler(3)) * 2:
        study.sampler = worker
        asked.append(choose(study.ask()))
    assert asked == alone


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
