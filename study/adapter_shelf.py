"""Keeps the adapters of the front on disk: exported when they join, removed when they leave."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from analysis.points import Point, Reference, front_points, recommend, study_points
from analysis.wording import say_counted
from objectives.bank.bank import Bank
from objectives.bank.export import export_adapter
from objectives.bank.loading import CONFIG_FILE, WEIGHTS_FILE
from storage.artifacts import ArtifactError, Refusal, StudyArtifacts
from storage.database import StudyStorage
from storage.reader import read_study
from storage.recorder import Recorder
from storage.records import MeasurementRecord

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows


class AdapterShelf:
    """The folder `adapters/` of a study, and with `artifacts` what the dashboard can download.

    A rung on the front is a finished recipe with fewer epochs, so its weights are exported while
    the trial that went through it still has them.

    What cannot be kept because a disk is full or a budget used up stops nothing: the measurements
    are in the database. `take_problems` tells what it was.
    """

    def __init__(
        self,
        storage: StudyStorage,
        recorder: Recorder,
        study: str,
        folder: Path,
        reference: Reference,
        artifacts: StudyArtifacts | None = None,
    ) -> None:
        self._storage = storage
        self._recorder = recorder
        self._study = study
        self._folder = folder.absolute()
        self._reference = reference
        self._artifacts = artifacts
        self._problems: list[str] = []
        self._told = set[str]()

    def update(self, bank: Bank, slots: dict[int, int]) -> tuple[Point, ...]:
        """Export what joined the front and remove what left it; return all points of the study.

        Args:
            bank: Where the adapters are.
            slots: For each trial that was just measured, its slot.
        """
        points = study_points(read_study(self._storage, self._study))
        wanted = self._wanted(points)
        kept = {(point.trial, point.epoch) for point in wanted}
        # First, so that those who join find room within the budget.
        for point in points:
            if point.adapter is not None and (point.trial, point.epoch) not in kept:
                self._remove(point)
        for point in wanted:
            slot = slots.get(point.trial)
            if slot is None or point.adapter is not None:
                continue
            if bank.progress(slot).epoch == point.epoch:
                self._keep(bank, slot, point)
        return points

    def keep_curve(self, trial: int) -> None:
        """Keep a running trial's measurements as lines of JSON, which the dashboard shows.

        An earlier one of the trial is replaced. Nothing is kept of a trial that was never
        measured, or without `artifacts`.

        Args:
            trial: Optuna's number of it.
        """
        if self._artifacts is None:
            return
        measurements = next(
            (
                record.searched
                for record in read_study(self._storage, self._study).trials
                if record.number == trial
            ),
            (),
        )
        if measurements:
            text = "".join(map(_describe_measurement, measurements))
            with self._noting():
                uploaded = self._artifacts.upload(
                    trial,
                    f"curve-trial-{trial:04d}.jsonl",
                    lambda file: file.write(text.encode()),
                    mimetype="application/jsonl",
                )
                self._note_refusal(uploaded)

    def take_problems(self) -> tuple[str, ...]:
        """Return what could not be kept since the last call, each problem once, and forget it."""
        problems = tuple(self._problems)
        self._problems.clear()
        return problems

    def _keep(self, bank: Bank, slot: int, point: Point) -> None:
        folder = self._path(point)
        with self._noting():
            try:
                # A folder that is there already may be another study's of the same name.
                export_adapter(bank, slot, folder)
            except (OSError, SafetensorError) as error:
                raise ArtifactError(
                    f"adapter: that of trial {point.trial} after "
                    f"{say_counted(point.epoch, 'epoch')} cannot be "
                    f"written to {folder} ({error}); free some space or mend the folder's "
                    "permissions; all that was measured is in the database"
                ) from error
            self._recorder.set_adapter(point.measurement_id, str(folder))
            if self._artifacts is not None:
                uploaded = self._artifacts.upload(
                    point.trial,
                    _zip_name(point),
                    lambda file: _write_zip(file, folder),
                    mimetype="application/zip",
                )
                self._note_refusal(uploaded)

    def _remove(self, point: Point) -> None:
        # What the dashboard offers goes first: the point is found again as long as it has a
        # folder.
        if self._artifacts is not None:
            with self._noting():
                for artifact in self._artifacts.list(point.trial):
                    if artifact.filename == _zip_name(point):
                        self._artifacts.remove(artifact.id)
        self._recorder.set_adapter(point.measurement_id, None)
        shutil.rmtree(self._path(point), ignore_errors=True)

    def _note_refusal(self, uploaded: object) -> None:
        if isinstance(uploaded, Refusal):
            self._note(uploaded.reason)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Turn a file that cannot be written into a note for the person."""
        try:
            yield
        except ArtifactError as error:
            self._note(str(error))

    def _note(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            self._problems.append(problem)

    def _wanted(self, points: Sequence[Point]) -> list[Point]:
        """Return the front, and the best members with and without rehearsal to compare them."""
        wanted = list(front_points(points, self._reference))
        for rehearses in (True, False):
            some = [point for point in points if point.rehearses == rehearses]
            best = recommend(front_points(some, self._reference))
            if best is not None and best not in wanted:
                wanted.append(best)
        return wanted

    def _path(self, point: Point) -> Path:
        return self._folder / f"trial-{point.trial:04d}-epoch-{point.epoch:04d}"


def _zip_name(point: Point) -> str:
    return f"adapter-trial-{point.trial:04d}-epoch-{point.epoch:04d}.zip"


def _write_zip(file: BinaryIO, folder: Path) -> None:
    """Write an adapter's two files as a zip; equal adapters give equal bytes."""
    # Stored as they are: weights hardly get smaller.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            with (
                (folder / name).open("rb") as source,
                archive.open(zipfile.ZipInfo(name, _ZIP_EPOCH), "w", force_zip64=True) as target,
            ):
                shutil.copyfileobj(source, target)


def _describe_measurement(kept: MeasurementRecord) -> str:
    """Return a measurement as a line of JSON; null is what was not measured."""
    measurement = kept.measurement
    recall, loss = measurement.recall, measurement.knowledge_loss
    line = {
        "epoch": measurement.epoch,
        "trained_tokens": measurement.trained_tokens,
        "sampling": measurement.sampling.name,
        "recall": _number(recall.value),
        "recall_low": _number(recall.low),
        "recall_high": _number(recall.high),
        "knowledge_loss": _number(loss.value),
        "knowledge_loss_low": _number(loss.low),
        "knowledge_loss_high": _number(loss.high),
    }
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _number(value: float | None) -> float | None:
    """Return a number that JSON knows, or None."""
    return value if value is not None and math.isfinite(value) else None
