"""Leases: at most one worker at a time may write about a trial, and a dead one is replaced."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage.database import StorageError, StudyNotFound, StudyStorage
from storage.tables import LeaseRow, database_seconds


class LeaseLost(StorageError):
    """Another worker may have taken the trial: stop working on it and write nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write about a trial.

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


def owner_is_dead(owner: str) -> bool:
    """Return whether a lease owner is known to have ended; False when this machine cannot tell.

    It can for processes of this host: those of an earlier boot are gone, those of this boot are
    looked up. A process that another one has replaced under the same number counts as alive.
    """
    host, pid, boot = owner.rsplit(":", 2)
    if host != socket.gethostname() or os.name != "posix":
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

    def renew(self, lease: Lease, *, seconds: float) -> None:
        """Let a lease run for `seconds` from now; also an expired one that nobody took over.

        Raises:
            LeaseLost: If it was taken over or released.
        """
        with self._storage.begin_write() as session, session.begin():
            self._change(session, lease, expires_at_seconds=database_seconds() + seconds)

    def release(self, lease: Lease) -> None:
        """Give a trial back, so that anyone may take it at once; a lost lease is left alone."""
        with self._storage.begin_write() as session, session.begin():
            try:
                self._change(session, lease, owner=None)
            except LeaseLost:
                return

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
            f"lease: that of trial {lease.trial} of study {lease.study!r} has expired; renew it "
            "or leave the trial to others"
        )


def _lock_row(session: Session, lease: Lease) -> LeaseRow:
    row = session.get(LeaseRow, {"study": lease.study, "trial": lease.trial}, with_for_update=True)
    if row is None or (row.owner, row.fence) != (lease.owner, lease.fence):
        raise LeaseLost(
            f"lease: trial {lease.trial} of study {lease.study!r} now belongs to "
            f"{row.owner if row and row.owner else 'nobody'}, no longer to {lease.owner}; "
            "stop working on it"
        )
    return row


def _now(session: Session) -> float:
    return session.execute(select(database_seconds())).scalar_one()
