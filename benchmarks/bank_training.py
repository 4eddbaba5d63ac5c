"""Our way of training a list of trials: in a bank of K slots, refilled as trials finish."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.workload import Trial
from objectives.bank import Bank
from objectives.models.base import BaseModel


def train_in_bank(
    base: BaseModel, trials: Sequence[Trial], *, slots: int
) -> tuple[list[float], float]:
    """Train trials in a new bank, in the order of the list.

    Returns:
        The mean loss over the last epoch of every trial, and the share of padding in all entries.
    """
    bank = Bank(base, slots=slots, max_rank=max(trial.recipe.rank for trial in trials))
    losses: list[list[float]] = [[] for _ in trials]
    waiting = list(range(len(trials)))
    occupant: dict[int, int] = {}
    while waiting or occupant:
        for slot in range(slots):
            if waiting and slot not in occupant:
                occupant[slot] = waiting.pop(0)
                trial = trials[occupant[slot]]
                bank.admit(slot, trial.recipe, trial.epoch_texts, seed=trial.seed)
        ended = bank.step()
        for slot, number in list(occupant.items()):
            progress = bank.progress(slot)
            last_epoch = trials[number].recipe.epochs - 1
            # After the last step of an epoch the count of epochs is one ahead.
            if progress.epoch - int(slot in ended) == last_epoch:
                assert progress.loss_nats is not None, progress.failure
                losses[number].append(progress.loss_nats)
            if progress.finished:
                bank.release(slot)
                del occupant[slot]
    return [fmean(own) for own in losses], bank.padding_share or 0.0
