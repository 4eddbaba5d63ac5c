"""Keeps the adapters of the front on disk: exported when they join, removed when they leave."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from analysis.points import Point, Reference, front_points, recommend, study_points
from objectives.bank.bank import Bank
from objectives.bank.export import export_adapter
from storage.database import StudyStorage
from storage.reader import read_study
from storage.recorder import Recorder


class AdapterShelf:
    """The folder `adapters/` of a study.

    A rung on the front is a finished recipe with fewer epochs, so its weights are exported while
    the trial that went through it still has them.
    """

    def __init__(
        self,
        storage: StudyStorage,
        recorder: Recorder,
        study: str,
        folder: Path,
        reference: Reference,
    ) -> None:
        self._storage = storage
        self._recorder = recorder
        self._study = study
        self._folder = folder.absolute()
        self._reference = reference

    def update(self, bank: Bank, slots: dict[int, int]) -> tuple[Point, ...]:
        """Export what joined the front and remove what left it; return all points of the study.

        Args:
            bank: Where the adapters are.
            slots: For each trial that was just measured, its slot.
        """
        points = study_points(read_study(self._storage, self._study))
        wanted = self._wanted(points)
        kept = {(point.trial, point.epoch) for point in wanted}
        for point in wanted:
            slot = slots.get(point.trial)
            if slot is None or point.adapter is not None:
                continue
            if bank.progress(slot).epoch == point.epoch:
                # A folder that is there already may be another study's of the same name.
                export_adapter(bank, slot, self._path(point))
                self._recorder.set_adapter(point.measurement_id, str(self._path(point)))
        for point in points:
            if point.adapter is not None and (point.trial, point.epoch) not in kept:
                self._recorder.set_adapter(point.measurement_id, None)
                shutil.rmtree(self._path(point), ignore_errors=True)
        return points

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
