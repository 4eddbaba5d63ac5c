"""Leases: at most one worker at a time may write about a trial, and a dead one is replaced."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from storage.database import StorageError, StudyNotFound, StudyStorage
from storage.patience import is_lost, patient
from storage.tables import LeaseRow, database_seconds

# What only one worker of a study may do at a time.
StudyLock = Literal["base", "asking", "shelving", "confirming", "reporting"]

# A lock is a lease on a trial that cannot be, so that it needs no table of its own. The numbers
# are the same in every version of this program.
_LOCK_NUMBERS: dict[StudyLock, int] = {
    "base": -1,
    "asking": -2,
    "shelving": -3,
    "confirming": -4,
    "reporting": -5,
}
_LONGEST_POLL_SECONDS = 1.0
_LOCK_NAMES = {number: what for what, number in _LOCK_NUMBERS.items()}


class LeaseLost(StorageError):
    """Another worker may have taken the trial: stop working on it and write nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write about a trial, or to do what a lock of the study is for.

    `fence` rises whenever the trial changes hands, so that a worker that slept through its expiry
    can never write again (Kleppmann, "How to do distributed locking", 2016).
    """

    study: str
    trial: int
    owner: str
    fence: int


def describe_this_process() -> str:
    """Return this process as a lease owner: `host:pid:boot`.

    `boot` names the running kernel and, inside a container, its own numbering of processes; it is
    empty where the system does not tell.
    """
    return f"{socket.gethostname()}:{os.getpid()}:{_boot_id()}"


def host_of(owner: str) -> str:
    """Return the host of a lease owner."""
    return owner.rsplit(":", 2)[0]


def owner_is_dead(owner: str) -> bool:
    """Return whether a lease owner is known to have ended; False when this machine cannot tell.

    It can for processes of this host: those of an earlier boot are gone, those of this boot are
    looked up. A process that another one has replaced under the same number counts as alive.
    """
    host, _, process = owner.partition(":")
    pid, _, boot = process.partition(":")
    if host != socket.gethostname() or os.name != "posix" or not pid.isdigit():
        return False
    kernel, _, processes = boot.partition("/")
    this_kernel, _, these_processes = _boot_id().partition("/")
    if kernel != this_kernel:
        return bool(kernel and this_kernel)
    if processes != these_processes:
        return False  # another container of this machine: its process numbers mean nothing here
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs, as another user
    return False


def _boot_id() -> str:
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{kernel}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


class LeaseBook:
    """Hands out leases on the trials of a storage, by the database's clock."""

    def __init__(self, storage: StudyStorage) -> None:
        self._storage = storage

    @patient
    def acquire(self, study: str, trial: int, *, owner: str, seconds: float) -> Lease | None:
        """Return a lease on a trial, or None while another living owner holds it.

        A lease is free when it was released, when it has expired, or when its owner is known to be
        dead. Acquiring what one holds already gives a new lease and ends the earlier one.

        Raises:
            StudyNotFound: If the study has no record yet.
        """
        where = {"study": study, "trial": trial}
        try:
            with self._storage.begin_write() as session, session.begin():
                row = session.get(LeaseRow, where, with_for_update=True)
                expires_at = database_seconds() + seconds
                if row is None:
                    session.execute(
                        insert(LeaseRow).values(
                            **where, owner=owner, fence=1, expires_at_seconds=expires_at
                        )
                    )
                    return Lease(study=study, trial=trial, owner=owner, fence=1)
                is_held = row.owner is not None and row.expires_at_seconds > _now(session)
                if is_held and row.owner not in (None, owner) and not owner_is_dead(row.owner):
                    return None
                fence = row.fence + 1
                session.execute(
                    update(LeaseRow)
                    .filter_by(**where)
                    .values(owner=owner, fence=fence, expires_at_seconds=expires_at)
                )
                return Lease(study=study, trial=trial, owner=owner, fence=fence)
        except IntegrityError as error:
            with self._storage.begin_read() as session:
                if session.get(LeaseRow, where) is not None:
                    return None  # another worker was first by a moment
            raise StudyNotFound(
                f"study: {study!r} has no record; create it before its trials"
            ) from error

    @patient
    def renew(self, lease: Lease, *, seconds: float) -> None:
        """Let a lease run for `seconds` from now; also an expired one that nobody took over.

        Raises:
            LeaseLost: If it was taken over or released.
        """
        with self._storage.begin_write() as session, session.begin():
            self._change(session, lease, expires_at_seconds=database_seconds() + seconds)

    @patient
    def release(self, lease: Lease) -> None:
        """Give a trial back, so that anyone may take it at once; a lost lease is left alone."""
        with self._storage.begin_write() as session, session.begin():
            try:
                self._change(session, lease, owner=None)
            except LeaseLost:
                return

    def try_lock(self, study: str, what: StudyLock, *, owner: str, seconds: float) -> Lease | None:
        """Return a lock of a study, or None while another living owner holds it.

        It is a lease: renew it if it must last longer than `seconds`, and release it. Threads of
        one process have one owner, so a lock does not keep them from each other.

        Raises:
            StudyNotFound: If the study has no record yet.
        """
        return self.acquire(study, _LOCK_NUMBERS[what], owner=owner, seconds=seconds)

    @contextmanager
    def lock(
        self,
        study: str,
        what: StudyLock,
        *,
        owner: str,
        seconds: float,
        patience_seconds: float,
        poll_seconds: float = 0.05,
    ) -> Iterator[Lease]:
        """Hold a lock of a study, as soon as it is free, until the block ends.

        A dead owner's is free at once if this machine can tell, else when it has expired.

        Args:
            study: Its name.
            what: What nobody else shall do meanwhile.
            owner: Who holds it.
            seconds: How long it holds without being renewed.
            patience_seconds: How long to wait for it.
            poll_seconds: How long to wait before the second look; later pauses are longer.

        Raises:
            StudyNotFound: If the study has no record yet.
            StorageError: If another owner keeps it for longer than `patience_seconds`.
        """
        deadline, pause_seconds = time.monotonic() + patience_seconds, poll_seconds
        while (lease := self.try_lock(study, what, owner=owner, seconds=seconds)) is None:
            if time.monotonic() >= deadline:
                raise StorageError(
                    f"lock: {what!r} of study {study!r} was held by "
                    f"{self._find_owner(study, _LOCK_NUMBERS[what]) or 'others in turn'} for "
                    f"{patience_seconds:g} seconds; see what that worker does, or stop it"
                )
            # Uneven and growing pauses: many who wait would else keep the database busy.
            time.sleep(pause_seconds * random.uniform(0.5, 1.0))
            pause_seconds = min(1.5 * pause_seconds, _LONGEST_POLL_SECONDS)
        try:
            yield lease
        finally:
            self.release(lease)

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """Keep a lease from changing hands until the block ends.

        The block must be short and write nothing to this database: on SQLite all writers wait for
        it. Should the connection break meanwhile, it is found out at the end whether anybody else
        had the lease in between.

        Raises:
            LeaseLost: If it was taken over or released, or has expired; at the beginning, before
                the block runs, or, after a broken connection, at its end.
        """
        session = self._begin_holding(lease)
        try:
            yield
        except BaseException:
            _leave(session)
            raise
        if not _leave(session):
            self._check_unbroken(lease)

    @patient
    def _begin_holding(self, lease: Lease) -> Session:
        session = self._storage.begin_write()
        try:
            check_lease(session, lease)
        except BaseException:
            session.close()
            raise
        return session

    @patient
    def _check_unbroken(self, lease: Lease) -> None:
        # The fence rises with every change of hands, so the same one means that there was none.
        with self._storage.begin_write() as session, session.begin():
            _lock_row(session, lease)

    @patient
    def _find_owner(self, study: str, trial: int) -> str | None:
        with self._storage.begin_read() as session:
            return session.scalar(select(LeaseRow.owner).filter_by(study=study, trial=trial))

    @staticmethod
    def _change(session: Session, lease: Lease, **values: object) -> None:
        _lock_row(session, lease)
        session.execute(
            update(LeaseRow).filter_by(study=lease.study, trial=lease.trial).values(**values)
        )


def check_lease(session: Session, lease: Lease) -> None:
    """Do nothing while a lease holds, and keep it from changing hands until the transaction ends.

    Raises:
        LeaseLost: If it was taken over or released, or has expired.
    """
    if _lock_row(session, lease).expires_at_seconds <= _now(session):
        raise LeaseLost(
            f"lease: that of {_describe(lease)} has expired; renew it or leave it to others"
        )


def _lock_row(session: Session, lease: Lease) -> LeaseRow:
    row = session.get(LeaseRow, {"study": lease.study, "trial": lease.trial}, with_for_update=True)
    if row is None or (row.owner, row.fence) != (lease.owner, lease.fence):
        raise LeaseLost(
            f"lease: {_describe(lease)} now belongs to "
            f"{row.owner if row and row.owner else 'nobody'}, no longer to {lease.owner}; "
            "stop working on it"
        )
    return row


def _leave(session: Session) -> bool:
    """End a transaction that wrote nothing; return whether it lasted until now."""
    try:
        session.execute(select(1))  # a commit of nothing may not ask the database
        session.commit()
    except SQLAlchemyError as error:
        if not is_lost(error):
            raise
        return False
    finally:
        session.close()
    return True


def _describe(lease: Lease) -> str:
    name = _LOCK_NAMES.get(lease.trial)
    what = f"trial {lease.trial}" if name is None else f"the lock {name!r}"
    return f"{what} of study {lease.study!r}"


def _now(session: Session) -> float:
    return session.execute(select(database_seconds())).scalar_one()
