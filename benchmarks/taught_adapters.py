"""Adapters that know something: trained by the bank, saved, and loaded by it and by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from benchmarks.workload import RANKS, Trial
from objectives.bank import Bank, export_adapter
from objectives.models.base import BaseModel

TAUGHT_EPOCHS = 4  # after which answers differ between adapters, some right and some wrong


def teach(base: BaseModel, trials: Sequence[Trial], folder: Path) -> None:
    """Train an adapter per trial and write them to `folder`, named by their numbers."""
    bank = Bank(base, slots=len(trials), max_rank=max(RANKS))
    for slot, trial in enumerate(trials):
        bank.admit(slot, trial.recipe, trial.epoch_texts, seed=trial.seed)
    while not all(bank.progress(slot).finished for slot in range(len(trials))):
        bank.step()
    for slot in range(len(trials)):
        export_adapter(bank, slot, folder / str(slot))


def load_in_peft(model: Any, folder: Path) -> Any:
    """Return a PEFT model with all adapters of a folder, which have their numbers as names."""
    first, *others = sorted(folder.iterdir())
    adapted = PeftModel.from_pretrained(model, first, adapter_name=first.name)
    for other in others:
        adapted.load_adapter(other, adapter_name=other.name)
    return adapted.eval()


def load_in_bank(base: BaseModel, folder: Path) -> Bank:
    """Return a bank with all adapters of a folder, in the slots of their numbers."""
    adapters = list(folder.iterdir())
    bank = Bank(base, slots=len(adapters), max_rank=max(RANKS))
    for adapter in adapters:
        bank.load(int(adapter.name), adapter)
    return bank
