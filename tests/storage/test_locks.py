"""Locks of a study: one process at a time, and none that a dead one keeps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from storage.database import StorageError, StudyNotFound, StudyStorage, open_storage
from storage.leases import Lease, LeaseBook, LeaseLost, StudyLock, describe_this_process
from storage.reader import read_clock, read_leases
from storage.recorder import Recorder
from storage.records import LeaseRecord

ADA = "elsewhere-1:100:boot"
BEN = "elsewhere-2:100:boot"


@pytest.fixture
def leases(storage: StudyStorage, recorder: Recorder) -> LeaseBook:
    """Return the leases of a storage that holds the study "oscars"."""
    return LeaseBook(storage)


def record_study(storage: StudyStorage, name: str) -> None:
    Recorder(storage, name).create_study_record(config="", fingerprint={}, slots=1, seed=0)


def start_worker(url: str, counter: Path, times: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("hold_lock.py"), url, counter, str(times)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
    )


class TestLock:
    def test_one_that_is_held_is_not_given_to_another(self, leases: LeaseBook) -> None:
        with leases.lock("oscars", "asking", owner=ADA, seconds=60, patience_seconds=0):
            assert leases.try_lock("oscars", "asking", owner=BEN, seconds=60) is None
            began = time.monotonic()
            with (
                pytest.raises(StorageError, match=rf"'asking' of study 'oscars' .* by {ADA} for"),
                leases.lock("oscars", "asking", owner=BEN, seconds=60, patience_seconds=0.2),
            ):
                pytest.fail("two owners hold one lock")
            assert 0.2 <= time.monotonic() - began < 5

    def test_it_is_free_after_the_block_also_when_that_fails(self, leases: LeaseBook) -> None:
        with (
            pytest.raises(KeyError),
            leases.lock("oscars", "asking", owner=ADA, seconds=60, patience_seconds=0),
        ):
            raise KeyError
        lock = leases.try_lock("oscars", "asking", owner=BEN, seconds=60)
        assert lock is not None
        leases.release(lock)
        assert leases.try_lock("oscars", "asking", owner=ADA, seconds=60) is not None

    def test_each_is_held_for_itself_and_apart_from_trials(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        record_study(storage, "nobels")
        names: list[StudyLock] = ["base", "asking", "shelving", "confirming", "reporting"]
        for number, what in enumerate(names):
            owner = f"elsewhere:{number}:boot"
            assert leases.try_lock("oscars", what, owner=owner, seconds=60) is not None
        assert leases.try_lock("nobels", "asking", owner=BEN, seconds=60) is not None
        assert leases.acquire("oscars", 0, owner=BEN, seconds=60) is not None
        assert [held.trial for held in read_leases(storage, "oscars")] == [0]

    def test_one_that_comes_free_is_taken_by_who_waits(self, leases: LeaseBook) -> None:
        lock = leases.try_lock("oscars", "asking", owner=ADA, seconds=60)
        assert lock is not None
        timer = threading.Timer(0.2, leases.release, [lock])
        timer.start()
        with leases.lock("oscars", "asking", owner=BEN, seconds=60, patience_seconds=20) as held:
            assert (held.owner, held.fence) == (BEN, lock.fence + 1)
        timer.join()

    def test_one_that_ran_out_is_taken_and_its_holder_learns_it(self, leases: LeaseBook) -> None:
        lock = leases.try_lock("oscars", "asking", owner=ADA, seconds=0.05)
        assert lock is not None
        with (
            leases.lock("oscars", "asking", owner=BEN, seconds=60, patience_seconds=20),
            pytest.raises(LeaseLost, match="the lock 'asking' of study 'oscars' now belongs to"),
        ):
            leases.renew(lock, seconds=60)

    def test_a_study_without_a_record_has_none(self, leases: LeaseBook) -> None:
        with pytest.raises(StudyNotFound):
            leases.try_lock("nobels", "asking", owner=ADA, seconds=60)


class TestProcesses:
    def test_only_one_at_a_time_holds_it(self, empty_url: str, tmp_path: Path) -> None:
        storage = open_storage(empty_url)
        record_study(storage, "oscars")
        storage.close()
        counter = tmp_path / "counter"
        counter.write_text("0")
        workers = [start_worker(empty_url, counter, 15) for _ in range(3)]
        for worker in workers:
            worker.communicate()
        assert [worker.returncode for worker in workers] == [0, 0, 0]
        assert counter.read_text() == "45"

    def test_that_of_a_killed_one_is_free_before_it_runs_out(
        self, empty_url: str, tmp_path: Path
    ) -> None:
        storage = open_storage(empty_url)
        record_study(storage, "oscars")
        leases, owner = LeaseBook(storage), describe_this_process()
        with start_worker(empty_url, tmp_path / "counter", 0) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "held\n"
            assert leases.try_lock("oscars", "asking", owner=owner, seconds=60) is None
            worker.kill()
            worker.wait()
        with leases.lock("oscars", "asking", owner=owner, seconds=60, patience_seconds=0):
            pass
        storage.close()


class TestHolding:
    def test_nobody_takes_a_lease_while_the_block_runs_even_when_it_runs_out(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        lease = leases.acquire("oscars", 3, owner=ADA, seconds=0.3)
        assert lease is not None
        taken: list[Lease | None] = []

        def take() -> None:
            taken.append(leases.acquire("oscars", 3, owner=BEN, seconds=60))

        taker = threading.Thread(target=take)
        with leases.holding(lease):
            time.sleep(0.4)
            taker.start()
            time.sleep(0.2)
            assert taken == []
        taker.join()
        assert [held.owner for held in taken if held] == [BEN]

    def test_the_block_does_not_run_without_the_lease(self, leases: LeaseBook) -> None:
        old = leases.acquire("oscars", 3, owner=ADA, seconds=0.01)
        time.sleep(0.05)
        assert old is not None
        for expected in ("has expired", "now belongs to"):
            with pytest.raises(LeaseLost, match=expected), leases.holding(old):
                pytest.fail("the block ran")
            leases.acquire("oscars", 3, owner=BEN, seconds=60)

    def test_an_error_of_the_block_comes_out_and_lets_go(self, leases: LeaseBook) -> None:
        lease = leases.acquire("oscars", 3, owner=ADA, seconds=60)
        assert lease is not None
        with pytest.raises(OSError, match="disk full"), leases.holding(lease):
            raise OSError("disk full")
        leases.renew(lease, seconds=60)


class TestReadingLeases:
    def test_holders_and_what_was_given_back_are_read(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        assert read_leases(storage, "oscars") == ()
        first = leases.acquire("oscars", 3, owner=ADA, seconds=60)
        second = leases.acquire("oscars", 1, owner=BEN, seconds=60)
        assert first is not None
        assert second is not None
        leases.release(second)
        released, held = read_leases(storage, "oscars")
        assert (released.trial, released.owner, released.fence) == (1, None, 1)
        assert held == LeaseRecord(
            trial=3, owner=ADA, fence=1, expires_at_seconds=held.expires_at_seconds
        )
        assert held.expires_at_seconds - read_clock(storage) == pytest.approx(60, abs=5)
        assert read_leases(storage, "nobels") == ()
