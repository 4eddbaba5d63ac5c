"""The folder of adapters holds the front: no less, no more, and nothing of another study."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.measurements import Estimate
from data.recipes import GREEDY, Recipe
from objectives.bank.export import export_adapter
from objectives.learn import Learning, Measured
from storage.leases import LeaseBook
from storage.reader import read_study

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


def measure_as(sitting: Any, trial: int, recall: float, knowledge_loss: float) -> None:
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
    sitting.worker.shelf.update(learning.bank, {trial: trial})


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
