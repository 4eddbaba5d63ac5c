"""Keeps files that belong to trials where Optuna's artifact API finds them, within a budget."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb.models import (
    StudyModel,
    StudySystemAttributeModel,
    TrialModel,
    TrialSystemAttributeModel,
)
from sqlalchemy import delete, select

from storage.database import StorageError, StudyStorage
from storage.patience import patient

DEFAULT_LIMIT_BYTES = 2_000_000_000

_KEY = "artifacts:"  # of the trial's system attribute that describes an artifact
_ID = re.compile(r"[0-9a-fA-F-]+")
_PART = ".part"


class ArtifactError(StorageError):
    """An artifact cannot be kept; the message says what, where and what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file of a trial; `size_bytes` is None where the file is not in the folder (any more)."""

    id: str
    trial: int
    filename: str
    mimetype: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An upload that was not made, with the reason as a person should read it."""

    reason: str


class ArtifactFolder:
    """An artifact store of Optuna: one file per artifact, named by its id.

    Its layout is that of Optuna's `FileSystemArtifactStore`, which can read it. Unlike there, a
    file has its name only once it is complete and on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the opened file of an artifact.

        Raises:
            ArtifactNotFound: If there is none of this id.
        """
        try:
            return self.path(artifact_id).open("rb")
        except (FileNotFoundError, ValueError) as error:
            raise ArtifactNotFound(f"{artifact_id} is not in {self._folder}") from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact, whole or not at all.

        Raises:
            OSError: If the disk is full or the folder cannot be written to.
        """
        with self.writing(artifact_id) as file:
            shutil.copyfileobj(content_body, file)

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact's file.

        Raises:
            ArtifactNotFound: If there is none of this id.
        """
        try:
            self.path(artifact_id).unlink()
        except (FileNotFoundError, ValueError) as error:
            raise ArtifactNotFound(f"{artifact_id} is not in {self._folder}") from error

    @contextmanager
    def writing(self, artifact_id: str) -> Iterator[BinaryIO]:
        """Open a file that becomes the artifact at the end, and vanishes after an error."""
        path = self.path(artifact_id)
        self._folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PART}")
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        _sync_folder(self._folder)

    def path(self, artifact_id: str) -> Path:
        """Return where an artifact's file lies, or would lie.

        Raises:
            ValueError: If the id could name a file elsewhere.
        """
        if _ID.fullmatch(artifact_id) is None:
            raise ValueError(f"artifact_id: {artifact_id!r} is not an artifact's id")
        return self._folder / artifact_id

    def size_bytes(self, artifact_id: str) -> int | None:
        """Return the size of an artifact's file, or None if there is none."""
        try:
            return self.path(artifact_id).stat().st_size
        except FileNotFoundError:
            return None

    def files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield every file of the folder, also unfinished ones; nothing if there is no folder."""
        with suppress(FileNotFoundError):
            for path in sorted(self._folder.iterdir()):
                with suppress(FileNotFoundError):  # another worker has just renamed or removed it
                    if path.is_file():
                        yield path, path.stat()


class StudyArtifacts:
    """The artifacts of one study's trials: described in the database, kept in a folder."""

    def __init__(
        self,
        folder: Path,
        storage: StudyStorage,
        study_name: str,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
    ) -> None:
        self._folder = folder
        self._storage = storage
        self._study = study_name
        self._limit_bytes = limit_bytes
        self.store = ArtifactFolder(folder)

    @property
    def total_bytes(self) -> int:
        """Return how much the folder's files take, those included that are being written."""
        return sum(stat.st_size for _, stat in self.store.files())

    def upload(
        self,
        trial: int,
        filename: str,
        write: Callable[[BinaryIO], object],
        *,
        mimetype: str = "application/octet-stream",
    ) -> Artifact | Refusal:
        """Keep a file for a running trial, in place of an earlier one of the same name.

        The file is complete before the database mentions it, so that a crash leaves at most a file
        that nobody knows. Refused is what exceeds the budget (several workers at once included),
        and what comes after the trial has ended, for Optuna takes nothing about those.

        Args:
            trial: Optuna's number of it.
            filename: What it is called when downloaded.
            write: Writes the contents into the opened file that it is given.
            mimetype: Of the contents.

        Raises:
            ArtifactError: If the disk is full or the folder cannot be written to.
            KeyError: If there is no such study or trial.
        """
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(
            self._storage.get_study_id_from_name(self._study), trial
        )
        artifact_id = str(uuid.uuid4())
        try:
            with self.store.writing(artifact_id) as file:
                write(file)
                file.flush()
                size_bytes = os.fstat(file.fileno()).st_size
                excess_bytes = self.total_bytes - self._limit_bytes
                if excess_bytes > 0:
                    raise _OverBudget(excess_bytes)
        except _OverBudget as over:
            return Refusal(
                reason=f"{filename} of trial {trial} ({_megabytes(size_bytes)}) was not kept: the "
                f"artifacts in {self._folder} would exceed their {_megabytes(self._limit_bytes)} "
                f"by {_megabytes(over.excess_bytes)}; remove some, or allow more"
            )
        except OSError as error:
            raise ArtifactError(self._explain(error, f"{filename} of trial {trial}")) from error
        description = {
            "artifact_id": artifact_id,
            "filename": filename,
            "mimetype": mimetype,
            "encoding": None,
        }
        try:
            self._storage.set_trial_system_attr(
                trial_id, f"{_KEY}{artifact_id}", json.dumps(description)
            )
        except UpdateFinishedTrialError:
            self._remove_file(artifact_id)
            return Refusal(reason=f"{filename} was not kept: trial {trial} has ended already")
        except BaseException:
            self._remove_file(artifact_id)
            raise
        for earlier in self.list(trial):
            if earlier.filename == filename and earlier.id != artifact_id:
                self.remove(earlier.id)
        return Artifact(
            id=artifact_id,
            trial=trial,
            filename=filename,
            mimetype=mimetype,
            size_bytes=size_bytes,
        )

    @patient
    def list(self, trial: int | None = None) -> tuple[Artifact, ...]:
        """Return the artifacts of all trials, or of one, by trial and name; none is fine too."""
        query = (
            select(TrialModel.number, TrialSystemAttributeModel.value_json)
            .join(TrialModel, TrialModel.trial_id == TrialSystemAttributeModel.trial_id)
            .join(StudyModel, StudyModel.study_id == TrialModel.study_id)
            .where(StudyModel.study_name == self._study)
            .where(TrialSystemAttributeModel.key.startswith(_KEY))
        )
        if trial is not None:
            query = query.where(TrialModel.number == trial)
        with self._storage.begin_read() as session:
            rows = [(number, _describe(text)) for number, text in session.execute(query)]
        found = [
            Artifact(
                id=described["artifact_id"],
                trial=number,
                filename=described["filename"],
                mimetype=described["mimetype"],
                size_bytes=self.store.size_bytes(described["artifact_id"]),
            )
            for number, described in rows
            if described is not None
        ]
        return tuple(sorted(found, key=lambda each: (each.trial, each.filename, each.id)))

    def remove(self, artifact_id: str) -> bool:
        """Remove an artifact, also of a trial that has ended; return whether there was one.

        Raises:
            ArtifactError: If the file cannot be removed.
        """
        # The description goes first: a crash in between leaves a file that nobody knows, not an
        # artifact that cannot be opened.
        was_known = self._forget(artifact_id)
        try:
            self.store.remove(artifact_id)
        except ArtifactNotFound:
            return was_known
        except OSError as error:
            raise ArtifactError(
                f"artifact: the file {self.store.path(artifact_id)} cannot be removed "
                f"({error.strerror}); remove it by hand"
            ) from error
        return True

    @patient
    def _forget(self, artifact_id: str) -> bool:
        """Delete the description of an artifact; return whether there was one."""
        # Optuna has no way to remove the attribute of a trial, and refuses any change to one that
        # has ended; so the row is deleted in its table.
        of_study = (
            select(TrialModel.trial_id)
            .join(StudyModel, StudyModel.study_id == TrialModel.study_id)
            .where(StudyModel.study_name == self._study)
        )
        key = f"{_KEY}{artifact_id}"
        with self._storage.begin_write() as session, session.begin():
            ids = session.scalars(
                select(TrialSystemAttributeModel.trial_system_attribute_id)
                .where(TrialSystemAttributeModel.key == key)
                .where(TrialSystemAttributeModel.trial_id.in_(of_study))
            ).all()
            session.execute(
                delete(TrialSystemAttributeModel)
                .where(TrialSystemAttributeModel.trial_system_attribute_id.in_(ids))
                .execution_options(synchronize_session=False)
            )
        return bool(ids)

    def leftovers(self, *, older_than_seconds: float = 3600.0) -> tuple[Path, ...]:
        """Return files of the folder that no study mentions: of crashes and of deleted studies.

        They count towards the budget until they are deleted. What is younger may be an upload that
        is under way.
        """
        known = self._all_ids()
        before = time.time() - older_than_seconds
        return tuple(
            path
            for path, stat in self.store.files()
            if path.name not in known and stat.st_mtime < before
        )

    @patient
    def _all_ids(self) -> set[str]:
        """Return the ids of all artifacts of the database, whatever they belong to."""
        ids = set[str]()
        with self._storage.begin_read() as session:
            for table in (TrialSystemAttributeModel, StudySystemAttributeModel):
                keys = session.scalars(select(table.key).where(table.key.startswith(_KEY)))
                ids.update(key.removeprefix(_KEY) for key in keys)
        return ids

    def _remove_file(self, artifact_id: str) -> None:
        with suppress(ArtifactNotFound, OSError):
            self.store.remove(artifact_id)

    def _explain(self, error: OSError, what: str) -> str:
        folder = self._folder.absolute()
        existing = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = _megabytes(shutil.disk_usage(existing).free)
        return (
            f"artifact: {what} cannot be written to {self._folder} "
            f"({error.strerror or error}; {free} are free there); free some space or mend the "
            "folder's permissions, then run the same command again; all that was measured is in "
            "the database"
        )


class _OverBudget(Exception):
    """What was written does not fit the budget; the file is given up."""

    def __init__(self, excess_bytes: int) -> None:
        super().__init__(excess_bytes)
        self.excess_bytes = excess_bytes


def _describe(text: str) -> dict[str, str] | None:
    """Return what a row says of an artifact; None for one that was removed in the dashboard."""
    # Optuna stores attributes as JSON, and an artifact's description as a JSON text within.
    content = json.loads(text)
    described: dict[str, str] | None = json.loads(content) if isinstance(content, str) else None
    return described


def _sync_folder(folder: Path) -> None:
    """Put a new name on the disk; systems other than POSIX do not let a folder be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
