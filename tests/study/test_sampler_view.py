"""What a sampler learns from: trials at their best points, and nothing else changed."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from analysis.points import Reference
from storage.database import open_storage
from study.goal import Goal
from study.rung_vectors import RungVector, make_stamp, store_vector
from study.sampler import STARTUP_TRIALS, SeededSampler
from study.sampler_view import view_of

REFERENCE = Reference(recall=0.05, knowledge_loss=0.5)


def vector(rung: int, recall: float, loss: float) -> RungVector:
    return RungVector(
        rung=rung,
        epoch=rung + 1,
        trained_tokens=1000 * (rung + 1),
        recall=recall,
        knowledge_loss=loss,
        is_last=False,
        stamp=make_stamp(REFERENCE),
    )


def make_study() -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"])


def ask(study: optuna.Study, *points: tuple[float, float]) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_float("rate", 0, 1)
    for rung, (recall, loss) in enumerate(points):
        store_vector(trial, vector(rung, recall, loss))
    return trial


def test_a_point_is_what_everything_gave_where_everything_was_asked() -> None:
    study = make_study()
    trial = ask(study, (0.5, 0.3))
    # By the part alone this would be the better one.
    last = replace(vector(1, 0.9, 0.1), recall_of_all=0.4, knowledge_loss_of_all=0.2)
    store_vector(trial, replace(last, is_last=True))
    study.tell(trial, values=(0.4, 0.2))
    # By hand: 0.45 * 0.2 is less than 0.35 * 0.3.
    assert view_of(study, REFERENCE).get_trials()[0].values == [0.4, 0.2]
    assert last.point == (0.4, 0.2)
    assert replace(last, recall_of_all=None).point == (0.9, 0.1)


def test_a_stopped_trial_is_known_by_the_best_point_it_went_through() -> None:
    study = make_study()
    study.tell(ask(study, (0.2, 0.1), (0.5, 0.3), (0.9, 0.7)), state=TrialState.PRUNED)
    study.tell(ask(study, (0.0, 0.0), (0.9, 0.7)), state=TrialState.PRUNED)
    study.tell(ask(study, (0.8, 0.1), (0.9, 0.45)), values=(0.9, 0.45))
    running = ask(study, (0.9, 0.1))
    seen = view_of(study, REFERENCE).get_trials()
    states = [trial.state.name for trial in seen]
    assert states == ["COMPLETE", "COMPLETE", "COMPLETE", "RUNNING"]
    # By hand: 0.15 * 0.4 is less than 0.45 * 0.2, and 0.75 * 0.4 more than 0.85 * 0.05.
    assert [trial.values for trial in seen] == [[0.5, 0.3], [0.9, 0.7], [0.8, 0.1], None]
    assert [trial.params for trial in seen] == [trial.params for trial in study.get_trials()]
    assert seen[running.number].number == running.number
    assert study.get_trials()[0].state == TrialState.PRUNED  # the study itself is as it was


def test_who_never_was_inside_is_known_by_what_comes_nearest() -> None:
    study = make_study()
    study.tell(ask(study, (0.0, 0.3), (0.9, 0.7)), state=TrialState.PRUNED)
    study.tell(ask(study, (math.nan, 0.3)), state=TrialState.PRUNED)
    study.tell(ask(study), state=TrialState.PRUNED)
    seen = view_of(study, REFERENCE).get_trials()
    assert [trial.values for trial in seen] == [[0.9, 0.7], None, None]


def test_points_of_another_reference_are_not_read() -> None:
    study = make_study()
    study.tell(ask(study, (0.5, 0.3)), state=TrialState.PRUNED)
    other = Reference(recall=0.1, knowledge_loss=0.5)
    assert view_of(study, other).get_trials()[0].state == TrialState.PRUNED


@pytest.mark.parametrize("bound", [0.2, 0.5])
def test_a_point_within_the_bound_is_feasible_although_its_trial_was_not(bound: float) -> None:
    study, goal = make_study(), Goal(max_knowledge_loss=bound)
    trial = ask(study, (0.3, 0.1), (0.9, 0.7))
    goal.constrain(trial, 0.7)
    study.tell(trial, state=TrialState.PRUNED)
    reference = Reference(recall=0.05, knowledge_loss=0.5)
    (seen,) = view_of(study, reference).get_trials()
    assert seen.state == TrialState.COMPLETE
    assert max(seen.constraints.values()) <= 0


def test_tpe_goes_where_stopped_trials_were_good() -> None:
    """Where the rate is low, trials pass through a good point before they are stopped."""

    def run(reference: Reference | None) -> float:
        low = 0
        for seed in range(5):
            study = optuna.create_study(
                directions=["maximize", "minimize"],
                sampler=SeededSampler(seed, reference=reference),
            )
            for _ in range(STARTUP_TRIALS + 20):
                trial = study.ask()
                rate = trial.suggest_float("rate", 0, 1)
                if rate < 0.3:
                    store_vector(trial, vector(0, 0.5, 0.1))
                store_vector(trial, vector(1, 0.4, 0.9))
                study.tell(trial, state=TrialState.PRUNED)
                low += trial.number >= STARTUP_TRIALS and rate < 0.3
        return low / 100

    assert run(REFERENCE) > run(None) + 0.2


def test_running_trials_are_known_to_other_processes_whatever_their_ids(tmp_path: Path) -> None:
    with closing(open_storage(f"sqlite:///{tmp_path / 'study.db'}")) as storage:
        other = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
        for _ in range(3):
            other.ask()  # the next study's ids are not its numbers
        study = optuna.create_study(
            storage=storage,
            directions=["maximize", "minimize"],
            sampler=SeededSampler(0, reference=REFERENCE),
        )
        for _ in range(STARTUP_TRIALS):
            study.tell(ask(study, (0.5, 0.3)), state=TrialState.PRUNED)
        asked = study.ask()
        asked.suggest_float("rate", 0, 1)
        attributes = study.get_trials()[asked.number].system_attrs
        assert any("relative_params" in name for name in attributes)
