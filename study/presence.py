"""A worker's presence at a study: its sitting, its signs of life, and the leases it keeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from storage.database import StorageError, StudyStorage
from storage.leases import Lease, LeaseBook, LeaseLost, StudyLock, describe_this_process
from storage.recorder import Recorder
from storage.records import WorkerState
from study.versions import versions_with

LEASE_SECONDS = 120.0
_SIGNS_PER_LEASE = 8  # so that some may fail before a lease expires
_LAST_SIGN_SECONDS = 2.0  # for a sign of life that is being given while the database is lost


class Presence:
    """What others see of a worker while it is at a study, as a context manager.

    A thread of its own renews the leases and gives a sign of life, however long the worker
    measures or waits. A lease that was lost meanwhile is told by `lost_trials`: the worker then
    stops that trial and writes nothing more about it.
    """

    def __init__(
        self,
        storage: StudyStorage,
        recorder: Recorder,
        study: str,
        *,
        device: str,
        slots: int,
        revision: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
        sign_seconds: float | None = None,
        measure_peak: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Prepare; nothing is written before the context is entered.

        Args:
            storage: Where the study lives.
            recorder: Writes it.
            study: Its name.
            device: What the worker computes on.
            slots: How many trials it runs at once.
            revision: The commit of its model, where that has one; recorded with the versions.
            lease_seconds: How long a trial stays this worker's without a sign of life.
            sign_seconds: Between two signs of life; by default several within a lease.
            measure_peak: Returns the most memory that this worker has held so far; every sign of
                life tells it.
        """
        self.owner = describe_this_process()
        self.leases = LeaseBook(storage)
        self._recorder = recorder
        self._study = study
        self._device = device
        self._slots = slots
        self._versions = versions_with(revision)
        self._lease_seconds = lease_seconds
        self._sign_seconds = sign_seconds or lease_seconds / _SIGNS_PER_LEASE
        self._measure_peak = measure_peak
        self._held: dict[int, Lease] = {}
        self._lost: set[int] = set()
        self._renewed_at = time.time()
        self._state = WorkerState(
            activity="starting",
            trained_tokens=0,
            training_seconds=0.0,
            asking_seconds=0.0,
            memory_bytes=None,
            memory_limit_bytes=None,
            load=None,
        )
        self._sitting_id: int | None = None
        self._guard = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._give_signs, name="presence", daemon=True)

    def __enter__(self) -> Self:
        """Record that the worker is there, and begin to give signs of life."""
        self._sitting_id = self._recorder.begin_sitting(
            owner=self.owner, device=self._device, slots=self._slots, versions=self._versions
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give every lease back and record that the worker has left."""
        self._is_over.set()
        if isinstance(error, StorageError):
            # The database is what failed; the leases expire. The thread may have begun to wait
            # for it later than the worker did, and need not be waited for.
            self._thread.join(timeout=_LAST_SIGN_SECONDS)
            return
        self._thread.join()
        for lease in list(self._held.values()):
            self.release(lease)
        self._give_sign(has_ended=True)

    def acquire(self, trial: int) -> Lease | None:
        """Return a lease that is kept alive until it is released; None if another holds it."""
        lease = self.leases.acquire(
            self._study, trial, owner=self.owner, seconds=self._lease_seconds
        )
        if lease is not None:
            self._keep(lease)
        return lease

    def try_lock(self, what: StudyLock) -> Lease | None:
        """Return a lock of the study that is kept alive until it is released; None if held."""
        lease = self.leases.try_lock(
            self._study, what, owner=self.owner, seconds=self._lease_seconds
        )
        if lease is not None:
            self._keep(lease)
        return lease

    @contextmanager
    def lock(self, what: StudyLock) -> Iterator[None]:
        """Hold a lock of the study until the block ends, as soon as it is free.

        Raises:
            StorageError: If others keep it for longer than two leases usually last.
        """
        with self.leases.lock(
            self._study,
            what,
            owner=self.owner,
            seconds=LEASE_SECONDS,
            patience_seconds=2 * LEASE_SECONDS,
        ):
            yield

    def release(self, lease: Lease) -> None:
        """Give a trial or a lock back; one that was lost is left to its new owner."""
        with self._guard:
            self._held.pop(lease.trial, None)
            self._lost.discard(lease.trial)
        self.leases.release(lease)

    def forget(self, lease: Lease) -> None:
        """Keep a lost lease alive no longer."""
        with self._guard:
            self._held.pop(lease.trial, None)
            self._lost.discard(lease.trial)

    def hold(self, lease: Lease) -> None:
        """Renew a lease now, so that nobody takes it while something is written about its trial.

        Raises:
            LeaseLost: If another worker has taken it over.
        """
        self.leases.renew(lease, seconds=self._lease_seconds)

    def refresh(self) -> None:
        """Renew all leases unless that was done lately, as it was not on a suspended machine."""
        # By the wall clock: the other one stands still while a machine sleeps.
        if abs(time.time() - self._renewed_at) > self._lease_seconds / 4:
            self.renew()

    def renew(self) -> None:
        """Renew all leases now: before writing after a long time, as on a suspended machine."""
        self._renewed_at = time.time()
        with self._guard:
            held = list(self._held.values())
        for lease in held:
            try:
                self.leases.renew(lease, seconds=self._lease_seconds)
            except LeaseLost:
                with self._guard:
                    if self._held.get(lease.trial) == lease:  # and not released meanwhile
                        self._lost.add(lease.trial)

    def lost_trials(self) -> frozenset[int]:
        """Return the trials whose leases another worker has taken over since they were kept."""
        with self._guard:
            return frozenset(self._lost)

    def tell(self, state: WorkerState) -> None:
        """Keep what the next sign of life says about the worker."""
        self._state = state

    def tell_activity(self, activity: str) -> None:
        """Keep what the worker is doing, for the next sign of life."""
        self._state = replace(self._state, activity=activity)

    def _keep(self, lease: Lease) -> None:
        with self._guard:
            self._held[lease.trial] = lease
            self._lost.discard(lease.trial)

    def _give_signs(self) -> None:
        while not self._is_over.wait(self._sign_seconds):
            try:
                self.renew()
                self._give_sign()
            except StorageError:
                # The database was waited for in vain. The worker's own thread finds that out too;
                # should it come back before, the leases may still be there to be renewed.
                continue

    def _give_sign(self, *, has_ended: bool = False) -> None:
        assert self._sitting_id is not None
        state = replace(self._state, peak_memory_bytes=self._measure_peak())
        self._recorder.record_sign_of_life(self._sitting_id, state, has_ended=has_ended)
