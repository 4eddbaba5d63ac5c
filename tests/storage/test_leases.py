"""Leases: one owner at a time, by the database's clock, and none for those who were replaced."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from sqlalchemy import select

from storage.database import StudyNotFound, StudyStorage
from storage.deletion import delete_study
from storage.leases import (
    Lease,
    LeaseBook,
    LeaseLost,
    check_lease,
    describe_this_process,
    owner_is_dead,
)
from storage.recorder import Recorder
from storage.tables import database_seconds

ADA = "elsewhere-1:100:boot"
BEN = "elsewhere-2:100:boot"


@pytest.fixture
def leases(storage: StudyStorage, recorder: Recorder) -> LeaseBook:
    """Return the leases of a storage that holds the study "oscars"."""
    return LeaseBook(storage)


def acquired(leases: LeaseBook, owner: str, seconds: float = 60) -> Lease:
    lease = leases.acquire("oscars", 3, owner=owner, seconds=seconds)
    assert lease is not None
    return lease


def check(storage: StudyStorage, lease: Lease) -> None:
    with storage.begin_write() as session:
        check_lease(session, lease)


class TestClock:
    def test_it_is_in_seconds_since_1970(self, storage: StudyStorage) -> None:
        with storage.begin_read() as session:
            now = session.execute(select(database_seconds())).scalar_one()
        assert now == pytest.approx(time.time(), abs=5)

    def test_it_runs_on_within_a_transaction(self, storage: StudyStorage) -> None:
        with storage.begin_read() as session:
            before = session.execute(select(database_seconds())).scalar_one()
            time.sleep(0.1)
            after = session.execute(select(database_seconds())).scalar_one()
        assert after - before >= 0.09  # SQLite counts whole milliseconds


class TestAcquire:
    def test_a_free_trial_is_given(self, storage: StudyStorage, leases: LeaseBook) -> None:
        lease = acquired(leases, ADA)
        assert lease == Lease(study="oscars", trial=3, owner=ADA, fence=1)
        check(storage, lease)

    def test_a_held_trial_is_not_given_to_another(self, leases: LeaseBook) -> None:
        acquired(leases, ADA)
        assert leases.acquire("oscars", 3, owner=BEN, seconds=60) is None

    def test_trials_are_held_apart(self, leases: LeaseBook) -> None:
        acquired(leases, ADA)
        assert leases.acquire("oscars", 4, owner=BEN, seconds=60) is not None

    def test_an_expired_trial_is_given_with_a_higher_fence(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        old = acquired(leases, ADA, seconds=0.05)
        time.sleep(0.1)
        new = acquired(leases, BEN)
        assert new.fence == old.fence + 1
        check(storage, new)

    def test_a_released_trial_is_given_at_once(self, leases: LeaseBook) -> None:
        old = acquired(leases, ADA)
        leases.release(old)
        assert acquired(leases, BEN).fence == old.fence + 1

    def test_its_owner_may_take_it_again_and_ends_its_earlier_lease(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        old = acquired(leases, ADA)
        check(storage, acquired(leases, ADA))
        with pytest.raises(LeaseLost):
            check(storage, old)

    def test_a_trial_of_a_killed_process_is_given_before_it_expires(
        self, leases: LeaseBook
    ) -> None:
        host, _, boot = describe_this_process().rsplit(":", 2)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            owner = f"{host}:{process.pid}:{boot}"
            acquired(leases, owner)
            assert leases.acquire("oscars", 3, owner=BEN, seconds=60) is None
            process.kill()
        assert acquired(leases, BEN).fence == 2

    def test_a_study_without_a_record_is_named(self, leases: LeaseBook) -> None:
        with pytest.raises(StudyNotFound, match="'nobels' has no record"):
            leases.acquire("nobels", 0, owner=ADA, seconds=60)


class TestHolding:
    def test_renewing_lets_it_run_from_now(self, storage: StudyStorage, leases: LeaseBook) -> None:
        lease = acquired(leases, ADA, seconds=0.3)
        leases.renew(lease, seconds=60)
        time.sleep(0.35)
        check(storage, lease)

    def test_an_expired_lease_does_not_hold(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        lease = acquired(leases, ADA, seconds=0.05)
        time.sleep(0.1)
        with pytest.raises(LeaseLost, match="trial 3 of study 'oscars' has expired"):
            check(storage, lease)

    def test_an_expired_lease_that_nobody_took_can_be_renewed(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        lease = acquired(leases, ADA, seconds=0.05)
        time.sleep(0.1)
        leases.renew(lease, seconds=60)
        check(storage, lease)

    def test_a_lease_that_was_taken_over_can_neither_be_used_nor_renewed_nor_released(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        old = acquired(leases, ADA, seconds=0.05)
        time.sleep(0.1)
        new = acquired(leases, BEN)
        with pytest.raises(LeaseLost, match=f"now belongs to {BEN}, no longer to {ADA}"):
            check(storage, old)
        with pytest.raises(LeaseLost):
            leases.renew(old, seconds=60)
        leases.release(old)
        check(storage, new)

    def test_a_released_lease_does_not_hold(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        lease = acquired(leases, ADA)
        leases.release(lease)
        with pytest.raises(LeaseLost, match="now belongs to nobody"):
            check(storage, lease)

    def test_deleting_the_study_ends_its_leases(
        self, storage: StudyStorage, leases: LeaseBook
    ) -> None:
        lease = acquired(leases, ADA)
        delete_study(storage, "oscars")
        with pytest.raises(LeaseLost):
            check(storage, lease)


class TestOwners:
    def test_this_process_is_alive(self) -> None:
        assert not owner_is_dead(describe_this_process())

    def test_nothing_is_known_of_another_host(self) -> None:
        _, pid, boot = describe_this_process().rsplit(":", 2)
        assert not owner_is_dead(f"elsewhere:{pid}:{boot}")
        assert not owner_is_dead("elsewhere:1:another-boot/1")

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells its boots apart")
    def test_a_process_of_an_earlier_boot_is_dead(self) -> None:
        host, pid, boot = describe_this_process().rsplit(":", 2)
        _, processes = boot.split("/")
        assert owner_is_dead(f"{host}:{pid}:another-boot/{processes}")

    @pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="Linux tells containers apart"
    )
    def test_nothing_is_known_of_another_container_of_this_machine(self) -> None:
        host, _, boot = describe_this_process().rsplit(":", 2)
        kernel, processes = boot.split("/")
        no_process = 2**22 + 1  # above the largest number Linux gives
        assert owner_is_dead(f"{host}:{no_process}:{boot}")
        assert not owner_is_dead(f"{host}:{no_process}:{kernel}/{processes}0")
