"""A worker's presence: leases live as long as it does, and what it loses it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.database import StorageError, StudyStorage, open_storage
from storage.leases import Lease, LeaseBook
from storage.patience import DatabaseLost, Patience
from storage.reader import read_clock, read_leases, read_sittings
from storage.recorder import Recorder
from storage.records import LeaseRecord, SittingRecord, WorkerState
from study.presence import Presence

STUDY = "tiny"
OTHER = "elsewhere:1:boot"  # of a host that this machine cannot look at
TRAINING = WorkerState(
    activity="training",
    trained_tokens=1200,
    training_seconds=2.0,
    asking_seconds=1.0,
    memory_bytes=10,
    memory_limit_bytes=None,
    load=0.5,
)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StudyStorage]:
    with closing(open_storage(f"sqlite:///{tmp_path / 'study.db'}")) as opened:
        Recorder(opened, STUDY).create_study_record(config="", fingerprint={}, slots=1, seed=0)
        yield opened


def be_present(
    storage: StudyStorage, *, lease_seconds: float = 0.5, sign_seconds: float | None = None
) -> Presence:
    return Presence(
        storage,
        Recorder(storage, STUDY),
        STUDY,
        device="cpu",
        slots=3,
        lease_seconds=lease_seconds,
        sign_seconds=sign_seconds,
    )


def acquire(presence: Presence, trial: int) -> Lease:
    lease = presence.acquire(trial)
    assert lease is not None
    return lease


def lease_of(storage: StudyStorage, trial: int) -> LeaseRecord:
    return next(lease for lease in read_leases(storage, STUDY) if lease.trial == trial)


def sitting(storage: StudyStorage) -> SittingRecord:
    (only,) = read_sittings(storage, STUDY)
    return only


def wait_until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def gives_no_signs() -> bool:
    return all(thread.name != "presence" for thread in threading.enumerate())


def take_over(storage: StudyStorage, trial: int) -> Lease:
    """Take a trial for a worker of another host, as when its lease had expired."""
    with storage.begin_write() as session, session.begin():
        session.execute(
            text("UPDATE remember_leases SET expires_at_seconds = 0 WHERE trial = :trial"),
            {"trial": trial},
        )
    lease = LeaseBook(storage).acquire(STUDY, trial, owner=OTHER, seconds=600)
    assert lease is not None
    return lease


def test_leases_outlive_their_seconds_while_the_worker_is_there(storage: StudyStorage) -> None:
    with be_present(storage) as presence:
        acquire(presence, 7)
        until = time.monotonic() + 1.5  # three times as long as a lease
        while time.monotonic() < until:
            assert LeaseBook(storage).acquire(STUDY, 7, owner=OTHER, seconds=60) is None
            time.sleep(0.1)
        assert presence.lost_trials() == frozenset()


def test_a_lock_is_kept_alive_like_a_trial(storage: StudyStorage) -> None:
    with be_present(storage) as presence:
        lock = presence.try_lock("confirming")
        assert lock is not None
        time.sleep(1.0)
        others = LeaseBook(storage)
        assert others.try_lock(STUDY, "confirming", owner=OTHER, seconds=60) is None
        presence.release(lock)
        assert others.try_lock(STUDY, "confirming", owner=OTHER, seconds=60) is not None


def test_without_signs_of_life_a_lease_is_lost_to_others(storage: StudyStorage) -> None:
    with be_present(storage, lease_seconds=0.2, sign_seconds=600) as presence:
        lease = acquire(presence, 7)
        wait_until(lambda: read_clock(storage) > lease_of(storage, 7).expires_at_seconds)
        taken = LeaseBook(storage).acquire(STUDY, 7, owner=OTHER, seconds=60)
        assert taken is not None
        assert taken.fence > lease.fence


def test_a_trial_that_another_worker_took_over_is_told_as_lost(storage: StudyStorage) -> None:
    with be_present(storage) as presence:
        acquire(presence, 1)
        acquire(presence, 2)
        take_over(storage, 2)
        wait_until(lambda: presence.lost_trials() == {2})
        time.sleep(0.3)  # some signs later it is still known
        assert presence.lost_trials() == {2}
    assert lease_of(storage, 2).owner == OTHER  # leaving takes nothing from its new owner


def test_renewing_tells_at_once_what_was_lost(storage: StudyStorage) -> None:
    with be_present(storage, lease_seconds=600) as presence:
        acquire(presence, 1)
        take_over(storage, 1)
        assert presence.lost_trials() == frozenset()
        presence.renew()
        assert presence.lost_trials() == {1}


def test_what_was_released_or_forgotten_is_not_lost(storage: StudyStorage) -> None:
    with be_present(storage, lease_seconds=600) as presence:
        released, forgotten = acquire(presence, 1), acquire(presence, 2)
        presence.release(released)
        take_over(storage, 1)
        take_over(storage, 2)
        presence.renew()
        assert presence.lost_trials() == {2}
        presence.forget(forgotten)
        presence.renew()
        assert presence.lost_trials() == frozenset()


class ReleasedWhileRenewed(LeaseBook):
    """Leases whose trial the worker gives back just before they are renewed."""

    presence: Presence

    def renew(self, lease: Lease, *, seconds: float) -> None:
        self.presence.release(lease)
        super().renew(lease, seconds=seconds)


def test_what_is_released_while_it_is_being_renewed_is_not_lost(storage: StudyStorage) -> None:
    with be_present(storage, lease_seconds=600) as presence:
        acquire(presence, 1)
        book = ReleasedWhileRenewed(storage)
        book.presence = presence
        presence.leases = book
        presence.renew()
        assert presence.lost_trials() == frozenset()


def test_a_trial_that_was_lost_and_taken_again_is_its_own(storage: StudyStorage) -> None:
    with be_present(storage, lease_seconds=600) as presence:
        acquire(presence, 1)
        taken = take_over(storage, 1)
        presence.renew()
        assert presence.lost_trials() == {1}
        LeaseBook(storage).release(taken)
        acquire(presence, 1)
        presence.renew()
        assert presence.lost_trials() == frozenset()


def test_what_another_worker_holds_is_not_acquired(storage: StudyStorage) -> None:
    assert LeaseBook(storage).acquire(STUDY, 4, owner=OTHER, seconds=600) is not None
    with be_present(storage) as presence:
        assert presence.acquire(4) is None
        presence.renew()
        assert presence.lost_trials() == frozenset()


def test_leaving_gives_all_back_and_records_the_end_with_the_last_state(
    storage: StudyStorage,
) -> None:
    with be_present(storage, lease_seconds=600) as presence:
        acquire(presence, 1)
        acquire(presence, 2)
        there = sitting(storage)
        assert (there.owner, there.device, there.slots) == (presence.owner, "cpu", 3)
        assert there.ended_at_seconds is None
        presence.tell(TRAINING)
        presence.tell_activity("asking")
    assert [lease.owner for lease in read_leases(storage, STUDY)] == [None, None]
    left = sitting(storage)
    assert left.state == replace(TRAINING, activity="asking")
    assert left.ended_at_seconds == left.seen_at_seconds >= left.began_at_seconds


def test_every_sign_of_life_says_what_the_worker_does(storage: StudyStorage) -> None:
    with be_present(storage) as presence:
        wait_until(lambda: sitting(storage).state is not None)
        first = sitting(storage)
        assert first.state is not None
        assert first.state.activity == "starting"
        presence.tell(TRAINING)
        wait_until(lambda: sitting(storage).state == TRAINING)
        assert sitting(storage).seen_at_seconds > first.seen_at_seconds


def test_an_error_of_the_worker_still_gives_its_trials_back(storage: StudyStorage) -> None:
    def fail() -> None:
        with be_present(storage) as presence:
            acquire(presence, 1)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert lease_of(storage, 1).owner is None
    assert sitting(storage).ended_at_seconds is not None


def test_after_an_error_of_the_database_it_is_left_alone(storage: StudyStorage) -> None:
    def fail() -> None:
        with be_present(storage, lease_seconds=600) as presence:
            acquire(presence, 1)
            raise StorageError("storage: it is gone")

    with pytest.raises(StorageError, match="it is gone"):
        fail()
    assert lease_of(storage, 1).owner is not None
    assert sitting(storage).ended_at_seconds is None
    assert gives_no_signs()


class LostStorage(StudyStorage):
    """A database that can be away; who waits for it does not wait long."""

    is_away: bool = False
    refused: int = 0

    def outlast(self, call: Callable[[], object]) -> object:  # type: ignore[override]
        if self.is_away:
            self.refused += 1
            raise DatabaseLost("storage: it was waited for in vain")
        return super().outlast(call)


@pytest.fixture
def losable(tmp_path: Path) -> Iterator[LostStorage]:
    url = f"sqlite:///{tmp_path / 'losable.db'}"
    open_storage(url).close()
    with closing(LostStorage(url)) as opened:
        opened.patience = Patience(longest_seconds=0.1)
        Recorder(opened, STUDY).create_study_record(config="", fingerprint={}, slots=1, seed=0)
        yield opened


def test_signs_of_life_go_on_when_a_lost_database_is_back(losable: LostStorage) -> None:
    with be_present(losable) as presence:
        acquire(presence, 1)
        losable.is_away = True
        wait_until(lambda: losable.refused >= 3)
        losable.is_away = False
        now = read_clock(losable)
        wait_until(lambda: sitting(losable).seen_at_seconds > now)
        wait_until(lambda: lease_of(losable, 1).expires_at_seconds > now + 0.4)
        assert presence.lost_trials() == frozenset()


class WaitingForever(StudyStorage):
    """A database that the thread waits for longer than anybody else."""

    waits: threading.Event
    may_end: threading.Event

    def outlast(self, call: Callable[[], object]) -> object:  # type: ignore[override]
        if threading.current_thread().name == "presence":
            self.waits.set()
            self.may_end.wait(60)
            raise DatabaseLost("storage: it was waited for in vain")
        return super().outlast(call)


def test_a_worker_that_gave_the_database_up_does_not_wait_for_its_thread(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    open_storage(url).close()
    with closing(WaitingForever(url)) as storage:
        storage.waits, storage.may_end = threading.Event(), threading.Event()
        Recorder(storage, STUDY).create_study_record(config="", fingerprint={}, slots=1, seed=0)

        def give_up() -> float:
            with be_present(storage) as presence:
                acquire(presence, 1)
                assert storage.waits.wait(20)
                raise DatabaseLost("storage: it is gone")

        began = time.monotonic()
        with pytest.raises(DatabaseLost, match="it is gone"):
            give_up()
        assert time.monotonic() - began < 15
        storage.may_end.set()
        wait_until(gives_no_signs)


def test_every_sign_of_life_tells_the_peak_so_far_and_the_last_one_too(
    storage: StudyStorage,
) -> None:
    peaks = iter(range(1, 10_000))
    presence = Presence(
        storage,
        Recorder(storage, STUDY),
        STUDY,
        device="cpu",
        slots=3,
        sign_seconds=0.05,
        measure_peak=lambda: next(peaks),
    )

    def told() -> int:
        state = sitting(storage).state
        return 0 if state is None else state.peak_memory_bytes or 0

    with presence:
        presence.tell(TRAINING)
        wait_until(lambda: told() >= 2)
        during = told()
    assert told() > during
    assert sitting(storage).state == replace(TRAINING, peak_memory_bytes=told())
