"""Losing cases: long texts in large batches, and neighbours of unequal rank, length and epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.bank_training import train_in_bank
from benchmarks.measuring import Case, Timing, peak_memory_mib, take_turns, write_result
from benchmarks.peers.peft_loop import train_by_hand
from benchmarks.workload import Trial, make_trials, oscars, peer_model, pocket_base, token_batches

SLOTS = 8
LONG_TEXTS: dict[str, Any] = {
    "cutoff": 256,
    "packing": "joined",
    "batch_size": 16,
    "rehearsal": 9,  # for enough text to fill two batches
}
LARGE_RANK, SMALL_RANK = 256, 4
MANY_EPOCHS = 4
FEW_FACTS = 12  # of which nine batches of short texts are made


def run(runs: int, *, slots: Sequence[int] = (1, 4, SLOTS)) -> None:
    """Measure, and write `losing.json`."""
    whole = make_trials(SLOTS, epochs=1)
    trials = [replace(trial, facts=trial.facts[:FEW_FACTS]) for trial in whole]
    small = [_with(trial, rank=SMALL_RANK) for trial in trials]
    long_texts = [_with(trial, **LONG_TEXTS) for trial in whole]
    works = {
        f"{SLOTS} trials of rank {SMALL_RANK}, for comparison": small,
        f"one trial of rank {LARGE_RANK} among seven of rank {SMALL_RANK}": [
            _with(small[0], rank=LARGE_RANK),
            *small[1:],
        ],
        "one trial of 256 tokens, batch size 16, among seven of short texts, batch size 4": [
            long_texts[0],
            *trials[1:],
        ],
        f"one trial of {MANY_EPOCHS} epochs among seven of one": [
            _with(trials[0], epochs=MANY_EPOCHS),
            *trials[1:],
        ],
    }
    padding: dict[str, float] = {}
    timings: dict[str, list[Timing]] = {}
    part = f"{SLOTS} trials of 256 tokens, batch size 16"
    timings[part] = take_turns(
        [
            _peft_case(long_texts[:1], of=SLOTS),
            *(_bank_case(part, long_texts[:count], padding, of=SLOTS) for count in slots),
        ],
        runs=runs,
    )
    for part, work in works.items():
        timings[part] = take_turns(
            [_peft_case(work, of=SLOTS), _bank_case(part, work, padding, of=SLOTS)], runs=runs
        )
    facts: dict[str, str | int | float] = {
        f"{case}: padding share": round(share, 4) for case, share in padding.items()
    }
    facts["peak memory in MiB, all of this"] = round(peak_memory_mib())
    write_result("losing", timings, facts=facts)


def _with(trial: Trial, **settings: Any) -> Trial:
    """Return a trial with other settings of its recipe."""
    return replace(
        trial, recipe=replace(trial.recipe, **settings), known_facts=oscars().known_facts
    )


def _peft_case(trials: Sequence[Trial], *, of: int) -> Case:
    """Return the case of a loop around PEFT over some of `of` trials, one after the other."""
    base = pocket_base()
    batches = [token_batches(trial, base) for trial in trials]

    def train() -> float:
        losses = [
            train_by_hand(peer_model(), trial.recipe, epochs, pad_id=base.pad_id)
            for trial, epochs in zip(trials, batches, strict=True)
        ]
        return losses[0]

    return Case(name="PEFT loop, base kept", run=train, share=len(trials) / of)


def _bank_case(part: str, trials: Sequence[Trial], padding: dict[str, float], *, of: int) -> Case:
    """Return the case of a bank that trains some of `of` trials, all at once."""
    name = f"bank, K = {len(trials)}"

    def train() -> float:
        losses, padding[f"{part}: {name}"] = train_in_bank(
            pocket_base(), trials, slots=len(trials)
        )
        return losses[0]

    return Case(name=name, run=train, share=len(trials) / of, is_ours=True)
