"""The scale benchmark in small: every trial is run once, and what is wrong is not overlooked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

import benchmarks
from benchmarks.scale import (
    Row,
    ScaleError,
    SqliteFiles,
    check_books,
    choose_trials,
    conclude,
    make_history,
    measure,
    run_crew_apart,
    write_rows,
)
from benchmarks.scale_worker import STUDY, CrewJob, CrewResult, WorkerResult, make_courses
from benchmarks.storage_share import TimedPatience
from benchmarks.table import write_table
from storage.database import open_storage
from storage.leases import LeaseBook
from storage.reader import read_study, read_verdicts

REPOSITORY = Path(str(benchmarks.__file__)).parents[1]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> CrewJob:
    folder = tmp_path_factory.mktemp("scale")
    return CrewJob(
        url=f"sqlite:///{folder / 'study.db'}",
        workers=2,
        trials=5,
        trial_seconds=0.12,
        rungs=3,
        folder=str(folder / "files"),
    )


@pytest.fixture(scope="module")
def result(job: CrewJob) -> CrewResult:
    return run_crew_apart(job)


@pytest.fixture
def lone() -> Row:
    """Return a row of one lone worker whose trials take two seconds, one of them the storage."""
    return Row(
        workers=1,
        trials=12,
        trial_seconds=1.0,
        storage_median=1.0,
        storage_p95=1.5,
        storage_alone=1.0,
        lock_wait_median=0.0,
        lock_wait_p95=0.0,
        lock_held_median=0.2,
        asking_median=0.2,
        recording_median=0.4,
        shelving_median=0.2,
        deciding_median=0.1,
        ending_median=0.1,
        share_of_a_minute=1 / 60,
        trials_per_second=0.5,
        lone_trials_per_second=0.5,
        sleeping_trials_per_second=1.0,
        worker_cpu=0.5,
        busy_share=0.3,
        connections=1,
        waits=0,
        errors=0,
    )


def test_two_workers_run_every_trial_once_and_leave_books_that_agree(
    job: CrewJob, result: CrewResult
) -> None:
    check_books(job, result, history=0)
    assert sorted(t.number for w in result.workers for t in w.trials) == [0, 1, 2, 3, 4]
    with closing(open_storage(job.url)) as storage:
        record = read_study(storage, STUDY)
        told = optuna.load_study(study_name=STUDY, storage=storage).get_trials()
        first = next(kept for kept in record.trials[0].measurements if kept.purpose == "rung")
        assert len(read_verdicts(storage, first.id)) == result.verdicts
        leases = LeaseBook(storage)
        assert all(leases.acquire(STUDY, n, owner="a:1:b", seconds=1) for n in range(5))
    for trial, frozen in zip(record.trials, told, strict=True):
        greedy = [
            kept.measurement for kept in trial.searched if not kept.measurement.sampling.do_sample
        ]
        assert [measured.epoch for measured in greedy] == [8, 16, 24]
        assert frozen.values == [greedy[-1].recall.value, greedy[-1].knowledge_loss.value]
        assert trial.costs is not None
        assert trial.costs.seconds >= job.trial_seconds


def test_the_times_of_a_trial_hold_those_of_its_lock(result: CrewResult) -> None:
    for worker in result.workers:
        for times in worker.trials:
            assert 0 < times.lock_held_seconds < times.asking_seconds
            assert times.lock_wait_seconds + times.lock_held_seconds <= times.asking_seconds
            assert times.storage_seconds > times.asking_seconds + times.recording_seconds


def test_a_failing_worker_is_told_and_keeps_nobody_waiting(job: CrewJob) -> None:
    broken = replace(job, url="sqlite:////nowhere/at/all.db")
    failed = run_crew_apart(broken)
    assert [worker.trials for worker in failed.workers] == [(), ()]
    with pytest.raises(ScaleError, match=r"\[\] were run, .*; 2 workers failed, first: .*nowhere"):
        check_books(broken, failed, history=0)


def test_books_that_are_wrong_are_not_overlooked(
    job: CrewJob, result: CrewResult, tmp_path: Path
) -> None:
    twice = CrewResult(
        workers=(*result.workers, WorkerResult(trials=result.workers[0].trials)),
        busy_share=0.0,
        verdicts=0,
    )
    with pytest.raises(ScaleError, match=r"trials: .* were run, and not each of 0 to 4"):
        check_books(job, twice, history=0)
    one_more = replace(job, url=SqliteFiles(tmp_path).fresh(job.url))
    with closing(open_storage(one_more.url)) as storage:
        optuna.load_study(study_name=STUDY, storage=storage).ask()
    with pytest.raises(ScaleError, match="numbers of Optuna"):
        check_books(one_more, result, history=0)


def test_workers_go_on_from_a_copy_of_a_study_and_become_a_table(tmp_path: Path) -> None:
    files = SqliteFiles(tmp_path)
    template = make_history(files, tmp_path / "files", trials=3)
    rows = measure(
        files,
        template,
        [2],
        tmp_path / "files",
        trial_seconds=0.06,
        trials_of=lambda workers: 2 * workers,
        history=3,
    )
    assert [(row.workers, row.trials, row.waits, row.errors) for row in rows] == [(2, 4, 0, 0)]
    assert rows[0].storage_alone == rows[0].storage_median > 0
    with closing(open_storage(template)) as storage:
        assert len(read_study(storage, STUDY).trials) == 3
    write_rows({"SQLite": rows}, {"rungs": 6}, tmp_path)
    written = json.loads((tmp_path / "scale.json").read_text())
    assert written["rows"]["SQLite"][0]["workers"] == 2
    assert "processor" in written["machine"]
    write_table(tmp_path, tmp_path / "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| 2 | 4 | " in page
    assert conclude("SQLite", rows) in page
    assert "gRPC" in page


def test_contention_begins_where_lone_workers_would_do_more(lone: Row) -> None:
    two = replace(lone, workers=2, trials_per_second=0.95, lone_trials_per_second=1.0)
    four = replace(
        lone,
        workers=4,
        trials_per_second=1.2,
        lone_trials_per_second=2.0,
        storage_median=2.0,
        lock_wait_median=0.8,
        busy_share=0.95,
    )
    said = conclude("SQLite", [lone, two, four])
    assert "contention begins at 4 workers" in said
    assert "reach 60% of" in said
    assert "waiting for the asking lock, with all of the machine's cores busy" in said
    # 1.2 trials per second, and a trial of a minute takes 61 seconds.
    assert "as many as 73 workers" in said
    slow = replace(four, lock_wait_median=0.1, busy_share=0.5)
    assert "most of the rest is slower calls, not the asking lock. " in conclude("", [slow])
    assert "no contention up to 2 workers, which reach 95% of" in conclude("", [lone, two])


def test_there_are_trials_for_every_worker() -> None:
    assert choose_trials(1) == 12
    assert choose_trials(32) == 64
    assert choose_trials(128) == 128


def test_measurements_are_as_large_as_those_of_the_default_study() -> None:
    courses = make_courses(6)
    assert len(courses) > 1
    for course in courses:
        (verdicts,) = {len(each) for each in course.fact_verdicts}
        assert verdicts == 23 * 3 * 4
        recalls = [measured.recall.value or 0.0 for measured in course.measurements]
        assert recalls[0] < recalls[-1]
        tokens = [measured.trained_tokens for measured in course.measurements]
        assert tokens == sorted(set(tokens))


def test_simulated_workers_need_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'plotly'}"
    script = (
        f"import sys; import benchmarks.scale_worker; print(sorted({heavy} & set(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


class TestTimedPatience:
    @pytest.fixture
    def patience(self) -> TimedPatience:
        return TimedPatience()

    @staticmethod
    def outlast(patience: TimedPatience, call: Callable[[], object]) -> None:
        patience.outlast(call, drop_connections=lambda: None)

    def test_a_call_within_another_is_not_counted_twice(self, patience: TimedPatience) -> None:
        self.outlast(patience, lambda: self.outlast(patience, lambda: None))
        (caller,) = patience.most_expensive()
        assert caller.calls == 1
        assert patience.seconds == caller.seconds > 0
        assert caller.name.startswith(f"{__name__}.TestTimedPatience.outlast: ")

    def test_calls_of_other_threads_are_not_counted(self, patience: TimedPatience) -> None:
        thread = threading.Thread(target=self.outlast, args=(patience, lambda: None))
        thread.start()
        thread.join()
        assert patience.seconds == 0
        assert patience.most_expensive() == []

    def test_a_call_that_fails_is_counted_and_does_not_hide_the_next(
        self, patience: TimedPatience
    ) -> None:
        with pytest.raises(ZeroDivisionError):
            self.outlast(patience, lambda: 1 / 0)
        self.outlast(patience, lambda: None)
        assert patience.most_expensive(1)[0].calls == 2
