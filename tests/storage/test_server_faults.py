"""A PostgreSQL whose connections are cut, or that is stopped and started: nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from data.recipes import GREEDY, Recipe
from storage.database import StudyStorage, open_storage
from storage.leases import LeaseBook, LeaseLost, describe_this_process
from storage.patience import DatabaseLost, Patience
from storage.reader import read_clock, read_study
from storage.recorder import Recorder
from storage.verdict_cache import VerdictCache
from tests.storage.postgresql_server import OwnPostgresql, fresh_database, own_postgresql

BEN = "elsewhere-2:100:boot"
RECIPE = Recipe(epochs=24, rank=8, alpha=16.0, cutoff=256, warmup_steps=10, learning_rate=1e-3)


@pytest.fixture(scope="module")
def own() -> Iterator[OwnPostgresql]:
    """Return a server that the tests of this file may stop."""
    with own_postgresql() as own:
        yield own


@pytest.fixture
def url(own: OwnPostgresql) -> str:
    """Return the URL of an empty database on it."""
    return fresh_database(own.url)


@pytest.fixture
def storage(url: str) -> Iterator[StudyStorage]:
    """Return a storage with the study "oscars", in Optuna's tables too."""
    storage = open_storage(url)
    Recorder(storage, "oscars").create_study_record(config="", fingerprint={}, slots=1, seed=0)
    optuna.create_study(study_name="oscars", storage=storage)
    yield storage
    storage.close()


def cut_connections(url: str) -> int:
    """Cut all connections to a database and return how many there were."""
    engine = create_engine(make_url(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        return len(
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            ).all()
        )


@contextmanager
def stopped(own: OwnPostgresql) -> Iterator[None]:
    own.stop()
    try:
        yield
    finally:
        own.start()


class TestCutConnections:
    def test_an_idle_one_that_was_cut_harms_nothing(self, storage: StudyStorage, url: str) -> None:
        said: list[str] = []
        storage.patience = Patience(notice=said.append)
        study = optuna.load_study(study_name="oscars", storage=storage)
        trial = study.ask()
        assert cut_connections(url) >= 1
        trial.suggest_float("x", 0, 1)
        assert cut_connections(url) >= 1
        VerdictCache(storage).write({"k": "correct"})
        assert cut_connections(url) >= 1
        study.tell(trial, 0.5)
        assert study.trials[0].value == 0.5
        assert VerdictCache(storage).read(["k"]) == {"k": "correct"}
        assert said == []  # found out before it was used

    @pytest.mark.parametrize("is_taken", [False, True])
    def test_one_that_held_a_lease_matters_only_if_the_lease_changed_hands(
        self, storage: StudyStorage, url: str, is_taken: bool
    ) -> None:
        leases = LeaseBook(storage)
        lease = leases.acquire("oscars", 3, owner=describe_this_process(), seconds=0.5)
        assert lease is not None

        def leave_it_cut() -> None:
            with leases.holding(lease):
                time.sleep(0.6)
                assert cut_connections(url) >= 1
                if is_taken:
                    assert leases.acquire("oscars", 3, owner=BEN, seconds=60) is not None

        if is_taken:
            with pytest.raises(LeaseLost, match=f"now belongs to {BEN}"):
                leave_it_cut()
        else:
            leave_it_cut()
            leases.renew(lease, seconds=60)


class TestStoppedServer:
    def test_what_a_thread_writes_meanwhile_is_all_there_afterwards(
        self, own: OwnPostgresql, storage: StudyStorage
    ) -> None:
        study = optuna.load_study(study_name="oscars", storage=storage)
        recorder, leases, owner = (
            Recorder(storage, "oscars"),
            LeaseBook(storage),
            describe_this_process(),
        )
        told: list[int] = []
        errors: list[Exception] = []
        is_over = threading.Event()

        def write() -> None:
            try:
                while not is_over.is_set():
                    trial = study.ask()
                    trial.suggest_float("x", 0, 1)
                    lease = leases.acquire("oscars", trial.number, owner=owner, seconds=60)
                    assert lease is not None
                    recorder.record_trial_started(
                        lease,
                        asked_index=trial.number,
                        recipe=RECIPE,
                        sampling=GREEDY,
                        seed=0,
                    )
                    study.tell(trial, float(trial.number))
                    told.append(trial.number)
            except Exception as error:
                errors.append(error)
            finally:
                storage.remove_session()

        def wait_for_more() -> None:
            count = len(told)
            wait_until(lambda: len(told) > count + 3 or errors)

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(2):
            wait_for_more()
            with stopped(own):
                time.sleep(2)
            assert errors == []
        wait_for_more()
        is_over.set()
        writer.join()
        assert errors == []
        finished = [trial for trial in study.trials if trial.state.is_finished()]
        assert [(trial.number, trial.value) for trial in finished] == [(n, n) for n in told]
        recorded = {trial.number for trial in read_study(storage, "oscars").trials}
        assert set(told) <= recorded

    def test_patience_ends_with_its_bound_and_work_goes_on_after_a_restart(
        self, own: OwnPostgresql, storage: StudyStorage
    ) -> None:
        said: list[str] = []
        storage.patience = Patience(longest_seconds=0.5, notice=said.append)
        with stopped(own):
            began = time.monotonic()
            with pytest.raises(DatabaseLost, match="run the same command again"):
                read_clock(storage)
            assert 0.5 <= time.monotonic() - began < 10
        (line,) = said
        assert "cannot be used (connection" in line
        assert read_clock(storage) == pytest.approx(time.time(), abs=5)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
