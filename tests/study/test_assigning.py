"""Who gets which trial: every one is asked once, taken up once, and no bound is exceeded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from pydantic import TypeAdapter

import study
from data.measurements import Estimate, Measurement
from data.recipes import GREEDY
from storage.database import StudyStorage, open_storage
from storage.leases import Lease, LeaseBook
from storage.reader import read_study
from storage.recorder import Recorder
from storage.records import StudyRecord
from study.assigning import FAILURE, Assignment, Bounds, NothingToDo, TooManyFailures
from study.budget import Budget
from study.presence import Presence
from study.sampler import STARTUP_TRIALS
from tests.storage.postgresql_server import fresh_database, running_postgresql
from tests.study.assign_trials import (
    STUDY,
    Given,
    Told,
    costs_after,
    end_trial,
    make_assigner,
    open_study,
)

REPOSITORY = Path(str(study.__file__)).parents[1]
OTHER = "elsewhere:1:boot"  # of a host that this machine cannot look at
_TOLD = TypeAdapter(Told)


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with running_postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "server"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return fresh_database(request.getfixturevalue("server_url"))


def start(folder: Path, url: str, workers: int, **options: Any) -> list[subprocess.Popen[str]]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    script = [sys.executable, "-m", "tests.study.assign_trials", str(folder), str(workers)]
    return [
        subprocess.Popen(
            [*script, url, json.dumps(options)],
            env=environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(workers)
    ]


def run(folder: Path, url: str, workers: int, *, ends_with: int = 0, **options: Any) -> list[Told]:
    """Let so many processes work at a study at once; return what each was given."""
    processes = start(folder, url, workers, **options)
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, said) in zip(processes, outputs, strict=True):
        assert process.returncode == ends_with, said
    return [_TOLD.validate_json(out) for out, _ in outputs]


def read(url: str) -> tuple[StudyRecord, list[optuna.trial.FrozenTrial]]:
    with closing(open_storage(url)) as storage:
        told = optuna.load_study(study_name=STUDY, storage=storage).get_trials()
        return read_study(storage, STUDY), told


def all_given(told: list[Told]) -> list[Given]:
    return [given for each in told for given in each.given]


def test_several_processes_ask_every_trial_once_and_no_more(tmp_path: Path, url: str) -> None:
    given = all_given(run(tmp_path / "ready", url, 4, trials=30))
    assert sorted(each.number for each in given) == list(range(30))
    assert sorted(each.asked_index for each in given) == list(range(30))
    assert len({each.seed for each in given}) == 30
    record, told = read(url)
    assert [trial.asked_index for trial in record.trials] == list(range(30))
    assert [trial.state for trial in record.trials] == ["complete", "pruned"] * 15
    assert [t.state for t in told] == [TrialState.COMPLETE, TrialState.PRUNED] * 15


@pytest.mark.slow
def test_several_processes_never_exceed_the_budget_of_epochs(tmp_path: Path, url: str) -> None:
    told = run(tmp_path / "ready", url, 4, trials=1000, epochs=60)
    record, _ = read(url)
    trained = sum(trial.costs.last_epoch for trial in record.trials if trial.costs)
    assert 60 - 6 < trained <= 60  # and what is left is less than a trial may take
    left = 60 - trained
    assert {each.reason for each in told} == {
        f"the budget of 60 epochs has {left} left, and a trial may take 6; a larger one lets the "
        "study go on"
    }
    assert {trial.state for trial in record.trials} == {"complete", "pruned"}


def test_trials_of_dead_workers_are_handed_out_once(tmp_path: Path, url: str) -> None:
    (first,) = run(tmp_path / "first", url, 1, ends_with=9, trials=20, dies_with=2)
    left = {given.number for given in first.given if given.number >= 0}
    assert left == {0, 1}
    given = all_given(run(tmp_path / "second", url, 4, trials=20))
    # A trial that was just asked may be taken up as well, before it is held by who asked it.
    assert left <= {each.number for each in given if each.is_taken_up}
    assert set(Counter(each.number for each in given).values()) == {1}
    assert sorted(each.number for each in given) == list(range(20))
    again = {each.number: each for each in given}
    for before in first.given:
        after = again[before.number]
        assert (after.params, after.seed) == (before.params, before.seed)
        assert after.asked_index == before.asked_index
    record, _ = read(url)
    assert len(record.trials) == 20
    assert all(trial.state != "running" for trial in record.trials)


@pytest.mark.slow
def test_startup_points_do_not_depend_on_how_many_work(tmp_path: Path, url: str) -> None:
    alone = f"sqlite:///{tmp_path / 'alone.db'}"
    points = []
    for folder, database, workers in (("one", alone, 1), ("four", url, 4)):
        given = all_given(run(tmp_path / folder, database, workers, trials=12))
        points.append({each.asked_index: (each.params, each.seed) for each in given})
    one, four = points
    startup = range(STARTUP_TRIALS)
    assert [one[index] for index in startup] == [four[index] for index in startup]
    assert len({str(one[index]) for index in startup}) == STARTUP_TRIALS


def test_it_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'plotly'}"
    script = f"import sys; import study.assigning; print(sorted({heavy} & sys.modules.keys()))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StudyStorage]:
    with closing(open_storage(f"sqlite:///{tmp_path / 'study.db'}")) as opened:
        yield opened


@pytest.fixture
def optuna_study(storage: StudyStorage) -> optuna.Study:
    return open_study(storage)


class Desk:
    """A worker without a model, and others beside it that this machine cannot look at."""

    def __init__(
        self, optuna_study: optuna.Study, storage: StudyStorage, presence: Presence
    ) -> None:
        self.study = optuna_study
        self.storage = storage
        self.presence = presence

    def next(self, *own: int, **bounds: Any) -> Assignment | NothingToDo:
        assigner = make_assigner(self.study, self.storage, self.presence, Bounds(**bounds))
        return assigner.next(own)

    def ask(self, *own: int, **bounds: Any) -> Assignment:
        found = self.next(*own, **bounds)
        assert isinstance(found, Assignment)
        return found

    def end(self, found: Assignment) -> None:
        end_trial(found, self.study, self.storage, self.presence)

    def fail(self, found: Assignment, reason: str) -> None:
        found.trial.set_user_attr(FAILURE, reason)
        self.record_end(found.lease)
        self.study.tell(found.trial.number, state=TrialState.FAIL)
        self.presence.release(found.lease)

    def record_end(self, lease: Lease) -> None:
        Recorder(self.storage, STUDY).record_trial_ended(
            lease, state="failed", costs=costs_after(0), reason="it was made to"
        )

    def hold_elsewhere(self, number: int, seconds: float = 600) -> Lease:
        lease = LeaseBook(self.storage).acquire(STUDY, number, owner=OTHER, seconds=seconds)
        assert lease is not None
        return lease


@pytest.fixture
def desk(optuna_study: optuna.Study, storage: StudyStorage) -> Iterator[Desk]:
    with Presence(storage, Recorder(storage, STUDY), STUDY, device="none", slots=2) as presence:
        yield Desk(optuna_study, storage, presence)


def test_an_assignment_is_held_and_recorded_as_running(desk: Desk) -> None:
    found = desk.ask(trials=3)
    assert (found.trial.number, found.asked_index, found.is_taken_up) == (0, 0, False)
    assert found.record is None
    assert found.recipe.epochs == found.trial.params["epochs"]
    (trial,) = read_study(desk.storage, STUDY).trials
    assert (trial.state, trial.recipe, trial.seed) == ("running", found.recipe, found.seed)
    assert LeaseBook(desk.storage).acquire(STUDY, 0, owner=OTHER, seconds=60) is None


def test_a_trial_of_a_living_worker_is_waited_for(desk: Desk) -> None:
    lease = desk.ask(trials=1).lease
    desk.presence.release(lease)
    desk.hold_elsewhere(0)
    assert desk.next(trials=1) == NothingToDo(others_run=True)


def test_its_own_trials_are_no_others(desk: Desk) -> None:
    desk.ask(trials=1)
    assert desk.next(0, trials=1) == NothingToDo(others_run=False)


def test_a_trial_whose_lease_has_expired_is_taken_up_with_its_record(desk: Desk) -> None:
    asked = desk.ask(trials=1)
    Recorder(desk.storage, STUDY).record_measurement(
        asked.lease, measurement(epoch=2), [], purpose="rung"
    )
    desk.presence.release(asked.lease)
    desk.hold_elsewhere(0, seconds=-1)
    found = desk.ask(trials=1)
    assert found.is_taken_up
    assert (found.recipe, found.seed) == (asked.recipe, asked.seed)
    assert found.record is not None
    assert [kept.measurement.epoch for kept in found.record.measurements] == [2]


def test_a_trial_that_was_asked_and_never_recorded_is_taken_up(desk: Desk) -> None:
    desk.study.ask()
    found = desk.ask(trials=1)
    assert (found.trial.number, found.is_taken_up, found.record) == (0, True, None)
    assert [trial.state for trial in read_study(desk.storage, STUDY).trials] == ["running"]


def test_an_end_that_was_recorded_but_not_told_is_told(desk: Desk) -> None:
    asked = desk.ask(trials=2)
    desk.record_end(asked.lease)
    desk.presence.release(asked.lease)
    found = desk.ask(trials=2)
    assert found.trial.number == 1
    assert desk.study.trials[0].state == TrialState.FAIL
    assert LeaseBook(desk.storage).acquire(STUDY, 0, owner=OTHER, seconds=1) is not None


class LatePresence(Presence):
    """Another worker takes up, ends and tells every trial just before this one acquires it."""

    optuna_study: optuna.Study
    storage: StudyStorage

    def acquire(self, trial: int) -> Lease | None:
        if trial == 0:
            lease = LeaseBook(self.storage).acquire(STUDY, trial, owner=OTHER, seconds=60)
            assert lease is not None
            Recorder(self.storage, STUDY).record_trial_ended(
                lease, state="failed", costs=costs_after(0), reason="a recipe that cannot work"
            )
            self.optuna_study.tell(trial, state=TrialState.FAIL)
            LeaseBook(self.storage).release(lease)
        return super().acquire(trial)


def test_a_trial_that_another_worker_ended_meanwhile_is_not_run_again(desk: Desk) -> None:
    desk.presence.release(desk.ask(trials=2).lease)
    recorder = Recorder(desk.storage, STUDY)
    with LatePresence(desk.storage, recorder, STUDY, device="none", slots=1) as late:
        late.optuna_study, late.storage = desk.study, desk.storage
        found = Desk(desk.study, desk.storage, late).ask(trials=2)
    assert (found.trial.number, found.is_taken_up) == (1, False)


def test_points_that_were_not_asked_count_for_nothing(desk: Desk) -> None:
    desk.end(desk.ask(trials=2))
    desk.study.add_trial(
        optuna.create_trial(
            values=[0.5, 0.1],
            params=desk.study.trials[0].params,
            distributions=desk.study.trials[0].distributions,
            user_attrs={"measured_from": 0},
        )
    )
    found = desk.ask(trials=2)
    assert (found.trial.number, found.asked_index) == (2, 1)
    assert desk.next(2, trials=2) == NothingToDo(others_run=False)


def test_a_budget_of_epochs_counts_trials_that_nobody_has_recorded(desk: Desk) -> None:
    trial = desk.study.ask()  # its worker, on another machine, died before it recorded it
    desk.hold_elsewhere(trial.number)
    found = desk.next(trials=10, budget=Budget(epochs=11))
    assert isinstance(found, NothingToDo)
    assert found.others_run
    assert found.reason is not None
    assert found.reason.startswith("the budget of 11 epochs has 5 left, and a trial may take 6")
    assert desk.ask(trials=10, budget=Budget(epochs=12)).asked_index == 1


def test_a_study_whose_trials_bring_nothing_ends(desk: Desk) -> None:
    for recall in (0.9, 0.3, 0.2):
        found = desk.ask(trials=10, flat_trials=2)
        Recorder(desk.storage, STUDY).record_trial_ended(
            found.lease, state="complete", costs=costs_after(2)
        )
        desk.study.tell(found.trial.number, values=(recall, 0.5))
        desk.presence.release(found.lease)
    assert desk.next(trials=10, flat_trials=2) == NothingToDo(
        others_run=False, reason="the last 2 trials brought nothing"
    )
    assert isinstance(desk.next(trials=10, flat_trials=3), Assignment)


def test_failures_in_a_row_stop_the_study_with_the_last_reason(desk: Desk) -> None:
    bounds = Bounds(trials=10, failures_in_a_row=2)
    assigner = make_assigner(desk.study, desk.storage, desk.presence, bounds)
    for reason in ("the loss is not a number", "memory ran out"):
        found = assigner.next(())
        assert isinstance(found, Assignment)
        desk.fail(found, reason)
    with pytest.raises(TooManyFailures, match=r"2 trials in a row .*trial 1\) because: memory"):
        assigner.next(())
    # Whoever comes after the cause was mended may try again.
    assert desk.ask(trials=10, failures_in_a_row=2).asked_index == 2


def test_a_success_between_failures_lets_the_study_go_on(desk: Desk) -> None:
    assigner = make_assigner(
        desk.study, desk.storage, desk.presence, Bounds(trials=10, failures_in_a_row=2)
    )
    for is_failure in (True, False, True):
        found = assigner.next(())
        assert isinstance(found, Assignment)
        if is_failure:
            desk.fail(found, "memory ran out")
        else:
            desk.end(found)
    assert isinstance(assigner.next(()), Assignment)


def test_a_budget_of_hours_that_is_used_up_says_so(desk: Desk) -> None:
    def why(**hours: Any) -> str | None:
        bounds = Bounds(trials=10, budget=Budget(**hours))
        return make_assigner(desk.study, desk.storage, desk.presence, bounds).why_used_up()

    assert why() is None
    assert why(hours=1.0, device_hours=1.0) is None
    assert why(hours=1e-9) == "the budget of 1e-09 hours is used up"
    assert why(device_hours=1e-9) == "the budget of 1e-09 device hours is used up"


def measurement(epoch: int) -> Measurement:
    nothing = Estimate(value=0.0, low=0.0, high=0.0, count=4)
    return Measurement(
        epoch=epoch,
        sampling=GREEDY,
        recall=nothing,
        knowledge_loss=nothing,
        recall_parts=(),
        rings=(),
        drift_nats=0.0,
        fuar=None,
        trained_tokens=100 * epoch,
        generated_tokens=10,
    )
