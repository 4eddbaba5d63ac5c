"""A trial goes on from its checkpoint bit for bit; a wrong checkpoint is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data.recipes import Recipe
from objectives.bank import Bank, CheckpointError, restore_checkpoint, save_checkpoint
from objectives.models.base import BaseModel

EpochTexts = Callable[[int], Sequence[str]]

RECIPE = Recipe(
    epochs=4,
    rank=3,
    alpha=6,
    cutoff=64,
    warmup_steps=6,
    learning_rate=3e-3,
    target_modules="mlp",
    dropout=0.2,
    weight_decay=0.01,
)


@pytest.mark.parametrize("steps_before", [0, 4, 6])  # at the start, in an epoch, at an epoch's end
def test_a_restored_trial_goes_on_bit_for_bit(
    base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path, steps_before: int
) -> None:
    uninterrupted = Bank(base, slots=1, max_rank=3)
    uninterrupted.admit(0, RECIPE, texts(0), seed=9)
    for _ in range(steps_before):
        uninterrupted.step()
    save_checkpoint(uninterrupted, 0, tmp_path / "checkpoint")
    resumed = Bank(base, slots=2, max_rank=8)
    restore_checkpoint(resumed, 1, tmp_path / "checkpoint", texts(0), recipe=RECIPE)
    assert resumed.progress(1) == uninterrupted.progress(0)
    while not uninterrupted.progress(0).finished:
        uninterrupted.step()
        resumed.step()
    one, other = uninterrupted.snapshot(0), resumed.snapshot(1)
    assert one.counters == other.counters
    assert one.counters.steps == 12  # 11 texts in batches of 4, four times
    for field in ("weights", "first_moments", "second_moments"):
        assert torch.equal(getattr(one, field), getattr(other, field))


def test_a_failed_trial_stays_failed(
    base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path
) -> None:
    bank = Bank(base, slots=2, max_rank=3)
    bank.admit(0, dataclasses.replace(RECIPE, learning_rate=1e30), texts(0), seed=9)
    while bank.progress(0).failure is None:
        bank.step()
    save_checkpoint(bank, 0, tmp_path)
    restore_checkpoint(bank, 1, tmp_path, texts(0))
    assert bank.progress(1) == bank.progress(0)
    assert bank.step() == ()


def test_a_later_checkpoint_replaces_the_earlier_and_leaves_nothing_beside_it(
    base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path
) -> None:
    bank = Bank(base, slots=2, max_rank=3)
    bank.admit(0, RECIPE, texts(0), seed=9)
    for _ in range(2):
        bank.step()
        save_checkpoint(bank, 0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    restore_checkpoint(bank, 1, tmp_path, texts(0))
    assert bank.progress(1).steps == 2


def test_a_checkpoint_of_something_else_is_refused(
    base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path
) -> None:
    bank = Bank(base, slots=2, max_rank=3)
    bank.admit(0, RECIPE, texts(0), seed=9)
    save_checkpoint(bank, 0, tmp_path)
    other_recipe = dataclasses.replace(RECIPE, learning_rate=1e-3)
    with pytest.raises(CheckpointError, match=r"recipe: .* was written with .*0\.003.*0\.001"):
        restore_checkpoint(bank, 1, tmp_path, texts(0), recipe=other_recipe)
    other_base = Bank(dataclasses.replace(base, digest="another"), slots=1, max_rank=3)
    with pytest.raises(CheckpointError, match=r"base: .* 'tiny-digest'; it must be 'another'"):
        restore_checkpoint(other_base, 0, tmp_path, texts(0))
    with pytest.raises(ValueError, match="rank: 3 is not allowed; it must be at most 2"):
        restore_checkpoint(Bank(base, slots=1, max_rank=2), 0, tmp_path, texts(0))
    assert bank.progress(1).steps == 0
    bank.admit(1, RECIPE, texts(0), seed=9)  # the slot is still empty


def test_another_schema_and_unreadable_files_are_refused(
    base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path
) -> None:
    bank = Bank(base, slots=2, max_rank=3)
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore_checkpoint(bank, 1, tmp_path, texts(0))
    bank.admit(0, RECIPE, texts(0), seed=9)
    save_checkpoint(bank, 0, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        [(key, described)] = file.metadata().items()
        weights = file.get_tensor("weights")
    save_file(
        {"weights": weights},
        path,
        metadata={key: described.replace('"schema_version": 1', '"schema_version": 2')},
    )
    with pytest.raises(CheckpointError, match=r"schema_version: .* 2; it must be 1; remove the"):
        restore_checkpoint(bank, 1, tmp_path, texts(0))
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore_checkpoint(bank, 1, tmp_path, texts(0))
