"""The folder of adapters holds the front: no less, no more, and nothing of another study."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.points import Reference
from data.measurements import NOT_MEASURED, Estimate
from data.recipes import GREEDY, Recipe
from objectives.bank.export import export_adapter
from objectives.learn import Learning, Measured
from storage.artifacts import StudyArtifacts
from storage.leases import LeaseBook
from storage.reader import read_study
from study.adapter_shelf import AdapterShelf

SitDown = Callable[..., AbstractContextManager[Any]]
RECIPE = Recipe(
    epochs=3, rank=4, alpha=8, cutoff=96, warmup_steps=0, learning_rate=1e-2, formats=("qna",)
)


def begin(sitting: Any, trial: int) -> None:
    """Let a trial train in the slot of its number for one epoch."""
    lease = LeaseBook(sitting.storage).acquire("tiny", trial, owner="test", seconds=600)
    sitting.worker.recorder.record_trial_started(
        lease, asked_index=trial, recipe=RECIPE, sampling=GREEDY, seed=trial
    )
    sitting.worker.learning.begin(trial, RECIPE, seed=trial)
    train_an_epoch(sitting, trial)


def train_an_epoch(sitting: Any, slot: int) -> None:
    while not sitting.worker.learning.bank.step([slot]):
        pass


def measure_as(
    sitting: Any,
    trial: int,
    recall: float,
    knowledge_loss: float,
    shelf: AdapterShelf | None = None,
) -> None:
    """Record that a trial has reached these values, and let the shelf look at it."""
    learning: Learning = sitting.worker.learning
    measured: Measured = learning.base
    measurement = replace(
        measured.measurement,
        epoch=learning.bank.progress(trial).epoch,
        recall=Estimate(value=recall, low=recall, high=recall, count=4),
        knowledge_loss=Estimate(
            value=knowledge_loss, low=knowledge_loss, high=knowledge_loss, count=22
        ),
    )
    lease = LeaseBook(sitting.storage).acquire("tiny", trial, owner="test", seconds=600)
    sitting.worker.recorder.record_measurement(lease, measurement, (), purpose="rung")
    (shelf or sitting.worker.shelf).update(learning.bank, {trial: trial})


def on_disk(sitting: Any) -> list[str]:
    return sorted(folder.name for folder in sitting.adapters.glob("*"))


def recorded(sitting: Any) -> list[str]:
    return sorted(
        Path(kept.adapter).name
        for trial in read_study(sitting.storage, "tiny").trials
        for kept in trial.measurements
        if kept.adapter is not None
    )


def test_adapters_join_and_leave_with_the_front(sit_down: SitDown) -> None:
    with sit_down(trials=2) as sitting:
        begin(sitting, 0)
        begin(sitting, 1)
        measure_as(sitting, 0, recall=0.5, knowledge_loss=0.2)
        assert on_disk(sitting) == recorded(sitting) == ["trial-0000-epoch-0001"]
        # Neither beats the other.
        measure_as(sitting, 1, recall=0.4, knowledge_loss=0.1)
        assert on_disk(sitting) == ["trial-0000-epoch-0001", "trial-0001-epoch-0001"]
        # This one beats the first.
        train_an_epoch(sitting, 1)
        measure_as(sitting, 1, recall=0.6, knowledge_loss=0.2)
        assert on_disk(sitting) == ["trial-0001-epoch-0001", "trial-0001-epoch-0002"]
        assert recorded(sitting) == on_disk(sitting)
        # Below the reference nothing is kept.
        train_an_epoch(sitting, 0)
        measure_as(sitting, 0, recall=0.01, knowledge_loss=0.0)
        assert (
            recorded(sitting)
            == on_disk(sitting)
            == [
                "trial-0001-epoch-0001",
                "trial-0001-epoch-0002",
            ]
        )


def test_the_adapter_of_a_rung_is_that_of_its_epoch(sit_down: SitDown, tmp_path: Path) -> None:
    with sit_down(trials=1) as sitting:
        begin(sitting, 0)
        export_adapter(sitting.worker.learning.bank, 0, tmp_path / "expected")
        measure_as(sitting, 0, recall=0.5, knowledge_loss=0.2)
        train_an_epoch(sitting, 0)
        measure_as(sitting, 0, recall=0.6, knowledge_loss=0.3)
        first, second = (
            (sitting.adapters / name / "adapter_model.safetensors").read_bytes()
            for name in on_disk(sitting)
        )
    assert first == (tmp_path / "expected" / "adapter_model.safetensors").read_bytes()
    assert first != second


def test_a_folder_that_another_study_left_is_replaced(sit_down: SitDown) -> None:
    with sit_down(trials=1) as sitting:
        weights = sitting.adapters / "trial-0000-epoch-0001" / "adapter_model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"of a study that was deleted")
        begin(sitting, 0)
        measure_as(sitting, 0, recall=0.5, knowledge_loss=0.2)
        assert weights.stat().st_size > 1000
        assert recorded(sitting) == ["trial-0000-epoch-0001"]


def shelf_with_artifacts(
    sitting: Any, *, limit_bytes: int = 10**9
) -> tuple[AdapterShelf, StudyArtifacts]:
    """Return a shelf that also uploads, and what it uploads to; trials 0 and 1 are asked."""
    for _ in range(2):
        sitting.study.ask()
    artifacts = StudyArtifacts(
        sitting.adapters.parent / "artifacts", sitting.storage, "tiny", limit_bytes
    )
    reference = Reference(recall=0.05, knowledge_loss=0.9)
    recorder = sitting.worker.recorder
    return (
        AdapterShelf(sitting.storage, recorder, "tiny", sitting.adapters, reference, artifacts),
        artifacts,
    )


def names(artifacts: StudyArtifacts) -> list[tuple[int, str]]:
    return [(each.trial, each.filename) for each in artifacts.list()]


def read(artifacts: StudyArtifacts, position: int = 0) -> bytes:
    with artifacts.store.open_reader(artifacts.list()[position].id) as file:
        return file.read()


class TestArtifacts:
    def test_an_adapter_is_uploaded_to_its_trial_and_removed_with_the_front(
        self, sit_down: SitDown
    ) -> None:
        with sit_down(trials=2) as sitting:
            shelf, artifacts = shelf_with_artifacts(sitting)
            begin(sitting, 0)
            begin(sitting, 1)
            measure_as(sitting, 0, 0.5, 0.2, shelf)
            assert names(artifacts) == [(0, "adapter-trial-0000-epoch-0001.zip")]
            with zipfile.ZipFile(io.BytesIO(read(artifacts))) as archive:
                assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"]
                assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
                for name in archive.namelist():
                    folder = sitting.adapters / "trial-0000-epoch-0001"
                    assert archive.read(name) == (folder / name).read_bytes()
            # Trial 0 ends; then trial 1 beats it.
            sitting.study.tell(0, values=[0.5, 0.2])
            measure_as(sitting, 1, 0.6, 0.1, shelf)
            assert names(artifacts) == [(1, "adapter-trial-0001-epoch-0001.zip")]
            assert on_disk(sitting) == ["trial-0001-epoch-0001"]
            assert shelf.take_problems() == ()

    def test_equal_adapters_give_equal_files(self, sit_down: SitDown) -> None:
        with sit_down(trials=1) as sitting:
            shelf, artifacts = shelf_with_artifacts(sitting)
            begin(sitting, 0)
            measure_as(sitting, 0, 0.5, 0.2, shelf)
            first = read(artifacts)
            for kept in read_study(sitting.storage, "tiny").trials[0].measurements:
                sitting.worker.recorder.set_adapter(kept.id, None)
            shelf.update(sitting.worker.learning.bank, {0: 0})
            assert names(artifacts) == [(0, "adapter-trial-0000-epoch-0001.zip")]
            assert read(artifacts) == first

    def test_over_the_budget_the_folder_is_kept_and_the_upload_reported(
        self, sit_down: SitDown
    ) -> None:
        with sit_down(trials=1) as sitting:
            shelf, artifacts = shelf_with_artifacts(sitting, limit_bytes=1000)
            begin(sitting, 0)
            measure_as(sitting, 0, 0.5, 0.2, shelf)
            assert names(artifacts) == []
            assert recorded(sitting) == on_disk(sitting) == ["trial-0000-epoch-0001"]
            (problem,) = shelf.take_problems()
            assert problem.startswith("adapter-trial-0000-epoch-0001.zip of trial 0 (")
            assert "would exceed" in problem
            assert shelf.take_problems() == ()

    def test_a_folder_that_cannot_be_written_to_is_reported_once_and_stops_nothing(
        self, sit_down: SitDown
    ) -> None:
        with sit_down(trials=1) as sitting:
            shelf, artifacts = shelf_with_artifacts(sitting)
            sitting.adapters.write_text("a file where the folder should be")
            begin(sitting, 0)
            for recall in (0.5, 0.6):
                measure_as(sitting, 0, recall, 0.2, shelf)
                train_an_epoch(sitting, 0)
            assert recorded(sitting) == []
            assert names(artifacts) == []
            problems = shelf.take_problems()
            assert len(problems) == len(set(problems)) == 2  # of two epochs
            assert "adapter: that of trial 0 after 1 epoch cannot be written to" in problems[0]
            assert "all that was measured is in the database" in problems[0]
            assert len(read_study(sitting.storage, "tiny").trials[0].measurements) == 2

    def test_an_artifact_folder_that_cannot_be_written_to_is_reported(
        self, sit_down: SitDown
    ) -> None:
        with sit_down(trials=1) as sitting:
            shelf, _ = shelf_with_artifacts(sitting)
            (sitting.adapters.parent / "artifacts").write_text("a file")
            begin(sitting, 0)
            measure_as(sitting, 0, 0.5, 0.2, shelf)
            shelf.keep_curve(0)
            assert on_disk(sitting) == ["trial-0000-epoch-0001"]
            problems = shelf.take_problems()
            assert [problem.split(" ")[1] for problem in problems] == [
                "adapter-trial-0000-epoch-0001.zip",
                "curve-trial-0000.jsonl",
            ]


class TestCurve:
    def test_it_has_a_line_for_each_measurement(self, sit_down: SitDown) -> None:
        with sit_down(trials=1) as sitting:
            shelf, artifacts = shelf_with_artifacts(sitting)
            begin(sitting, 0)
            measure_as(sitting, 0, 0.01, 0.2, shelf)
            shelf.keep_curve(0)
            train_an_epoch(sitting, 0)
            measure_as(sitting, 0, 0.02, 0.3, shelf)
            shelf.keep_curve(0)
            assert names(artifacts) == [(0, "curve-trial-0000.jsonl")]
            lines = [json.loads(line) for line in read(artifacts).splitlines()]
        assert [(line["epoch"], line["recall"], line["knowledge_loss"]) for line in lines] == [
            (1, 0.01, 0.2),
            (2, 0.02, 0.3),
        ]
        assert {*lines[0]} == {
            "epoch",
            "trained_tokens",
            "sampling",
            "recall",
            "recall_low",
            "recall_high",
            "knowledge_loss",
            "knowledge_loss_low",
            "knowledge_loss_high",
        }

    @pytest.mark.parametrize("value", [None, float("nan")])
    def test_what_was_not_measured_is_null(self, sit_down: SitDown, value: float | None) -> None:
        with sit_down(trials=1) as sitting:
            shelf, artifacts = shelf_with_artifacts(sitting)
            begin(sitting, 0)
            lease = LeaseBook(sitting.storage).acquire("tiny", 0, owner="test", seconds=600)
            missing = replace(NOT_MEASURED, value=value)
            measurement = replace(
                sitting.worker.learning.base.measurement, epoch=1, recall=missing
            )
            sitting.worker.recorder.record_measurement(lease, measurement, (), purpose="rung")
            shelf.keep_curve(0)
            (line,) = map(json.loads, read(artifacts).splitlines())
        assert line["recall"] is None

    def test_a_trial_without_measurements_has_none(self, sit_down: SitDown) -> None:
        with sit_down(trials=1) as sitting:
            shelf, artifacts = shelf_with_artifacts(sitting)
            begin(sitting, 0)
            shelf.keep_curve(0)
            assert names(artifacts) == []

    def test_without_artifacts_nothing_is_kept(self, sit_down: SitDown) -> None:
        with sit_down(trials=1) as sitting:
            begin(sitting, 0)
            measure_as(sitting, 0, 0.5, 0.2)
            sitting.worker.shelf.keep_curve(0)
            assert sitting.worker.shelf.take_problems() == ()
            assert [path.name for path in sitting.adapters.parent.iterdir() if path.is_dir()] == [
                "adapters"
            ]
