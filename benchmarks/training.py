"""Training: 32 trials one by one, in PEFT's mixed batches, and in banks of K slots."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from statistics import fmean

from benchmarks.bank_training import train_in_bank
from benchmarks.measuring import Case, Timing, take_turns, write_result
from benchmarks.memory import peak_alone_mib
from benchmarks.peers.mixed_batch import train_in_mixed_batches
from benchmarks.peers.peft_loop import train_by_hand
from benchmarks.peers.trainer import reload_model, train_with_trainer
from benchmarks.workload import (
    EPOCHS,
    TRIALS,
    Trial,
    make_trials,
    peer_model,
    pocket_base,
    token_batches,
)
from objectives.bank.batches import count_predicted

BATCH_SIZES = (4, 2, 8)
SLOTS = (1, 8, 16, 32)
SAMPLE = 2  # trials that every way trains: the outcome is their loss
MIXED = 8  # adapters in one mixed batch

TRAINER, PEFT_LOOP = "Trainer + PEFT per trial", "PEFT loop, base kept"


def run(
    runs: int, *, batch_sizes: Sequence[int] = BATCH_SIZES, slots: Sequence[int] = SLOTS
) -> None:
    """Measure, and write `training.json`."""
    timings: dict[str, list[Timing]] = {}
    facts: dict[str, str | int | float] = {"trials": TRIALS, "epochs of each": EPOCHS}
    for batch_size in batch_sizes:
        trials = make_trials(batch_size=batch_size)
        batches = token_batches(trials[0], pocket_base())
        part = f"batch size {batch_size}"
        facts[f"{part}: optimizer steps per trial"] = sum(map(len, batches))
        facts[f"{part}: trained tokens per trial"] = sum(
            count_predicted(batch) for epoch in batches for batch in epoch
        )
        padding_of: dict[int, float] = {}
        cases = _cases(trials, slots, padding_of)
        # Threads and allocator are warm after the first part.
        timings[part] = take_turns(cases, runs=runs, warm_up=not timings)
        for count, share in padding_of.items():
            facts[f"{part}: padding share, K = {count}"] = round(share, 4)
    facts["seconds to load the model"] = _seconds_to_load()
    facts |= _peak_memory(slots)
    write_result("training", timings, facts=facts)


def train_by_trainer(trials: Sequence[Trial]) -> float:
    """Train by Trainer, the model loaded for each trial; return the sample's mean loss."""
    base = pocket_base()
    return _outcome(
        train_with_trainer(
            base.source, trial.recipe, token_batches(trial, base), pad_id=base.pad_id
        )[1]
        for trial in trials
    )


def train_by_loop(trials: Sequence[Trial]) -> float:
    """Train by a loop around PEFT, the model loaded once; return the sample's mean loss."""
    base = pocket_base()
    return _outcome(
        train_by_hand(peer_model(), trial.recipe, token_batches(trial, base), pad_id=base.pad_id)
        for trial in trials
    )


def train_by_mixed_batch(trials: Sequence[Trial]) -> float:
    """Train all in one mixed batch per step; return the sample's mean loss."""
    base = pocket_base()
    return _outcome(
        train_in_mixed_batches(
            peer_model(),
            [trial.recipe for trial in trials],
            [token_batches(trial, base) for trial in trials],
            pad_id=base.pad_id,
        )
    )


def train_by_bank(
    trials: Sequence[Trial], slots: int, padding_of: dict[int, float] | None = None
) -> float:
    """Train in a bank; return the sample's mean loss, and note the share of padding by slots."""
    last_losses, padding_share = train_in_bank(pocket_base(), trials, slots=slots)
    if padding_of is not None:
        padding_of[slots] = padding_share
    return _outcome(last_losses)


def _outcome(last_losses: Iterable[float]) -> float:
    """Return the mean over the sample of the mean losses over the last epoch."""
    return fmean(list(last_losses)[:SAMPLE])


def _enough_for(slots: int, trials: Sequence[Trial]) -> Sequence[Trial]:
    """Return as many trials as keep all slots busy to the end, the sample at least."""
    return trials[: max(SAMPLE, slots)]


def _cases(
    trials: Sequence[Trial], slots: Sequence[int], padding_of: dict[int, float]
) -> list[Case]:
    for trial in trials:
        token_batches(trial, pocket_base())  # made before anything is timed
    return [
        Case(
            name=TRAINER,
            run=partial(train_by_trainer, trials[:SAMPLE]),
            share=SAMPLE / TRIALS,
            settings="fused AdamW, no evaluation, saving or reports; model loaded per trial",
        ),
        Case(
            name=PEFT_LOOP,
            run=partial(train_by_loop, trials[:SAMPLE]),
            share=SAMPLE / TRIALS,
            settings="plain PEFT steps, fused AdamW, no attention mask",
        ),
        Case(
            name=f"PEFT mixed batch (eval mode), {MIXED} adapters",
            run=partial(train_by_mixed_batch, trials[:MIXED]),
            share=MIXED / TRIALS,
            settings="adapter_names per row, own loss, clipping and rate per adapter",
        ),
        *(
            Case(
                name=f"bank, K = {count}",
                run=partial(train_by_bank, _enough_for(count, trials), count, padding_of),
                share=len(_enough_for(count, trials)) / TRIALS,
                is_ours=True,
                settings="one trial after the other" if count == 1 else f"{count} trials at once",
            )
            for count in slots
        ),
    ]


def _seconds_to_load() -> float:
    begun = time.perf_counter()
    reload_model(pocket_base().source)
    return round(time.perf_counter() - begun, 3)


def _peak_memory(slots: Sequence[int]) -> dict[str, int]:
    """Return the peak memory of one epoch of every way, each in a process of its own."""
    trials = make_trials(epochs=1)
    return {
        "peak memory in MiB, model loaded": peak_alone_mib(pocket_base),
        f"peak memory in MiB, {TRAINER}": peak_alone_mib(train_by_trainer, trials[:1]),
        f"peak memory in MiB, {PEFT_LOOP}": peak_alone_mib(train_by_loop, trials[:1]),
        f"peak memory in MiB, PEFT mixed batch of {MIXED}": peak_alone_mib(
            train_by_mixed_batch, trials[:MIXED]
        ),
    } | {
        f"peak memory in MiB, bank, K = {count}": peak_alone_mib(
            train_by_bank, trials[:count], count
        )
        for count in slots
    }
