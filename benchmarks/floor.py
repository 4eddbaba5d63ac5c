"""Where the time of a training step goes, and the least that its matrix products would take."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import Case, take_turns, write_result
from benchmarks.workload import make_trials, pocket_base
from objectives.bank import Bank

STEPS = 12
BATCH_SIZES = (4, 2)
SLOTS = 16
WIDTH = 2048  # of a matrix product that runs at the machine's full rate

# Torch's functions by what they do; all others change numbers one by one or move them.
_KINDS = {
    "aten::mm": "the base's and the head's matrix products",
    "aten::addmm": "the base's and the head's matrix products",
    "aten::bmm": "the adapters' batched products",
    "aten::baddbmm": "the adapters' batched products",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "attention",
}
_ELEMENTWISE, _PYTHON = "element by element, and moving memory", "Python and autograd"


def run(runs: int) -> None:
    """Measure, and write `floor.json`."""
    rate = _full_rate()
    facts: dict[str, str | int | float] = {
        f"matrix products of {WIDTH} squared, GFLOP per second": round(rate / 1e9)
    }
    timings = {}
    for batch_size in BATCH_SIZES:
        part = f"batch size {batch_size}, K = {SLOTS}, {STEPS} steps"
        bank = _busy_bank(batch_size)
        timings[part] = take_turns(
            [Case(name="bank", run=partial(_take_steps, bank), is_ours=True)], runs=runs
        )
        shares, operations = _profile(bank)
        for kind, share in shares.most_common():
            facts[f"{part}: share of {kind}"] = round(share, 3)
        least = operations / rate
        facts[f"{part}: GFLOP in matrix products"] = round(operations / 1e9, 1)
        facts[f"{part}: seconds they would take at the full rate"] = round(least, 3)
        facts[f"{part}: measured time against that"] = round(
            timings[part][0].median_seconds / least, 2
        )
    write_result("floor", timings, facts=facts)


def _busy_bank(batch_size: int) -> Bank:
    trials = make_trials(SLOTS, batch_size=batch_size, epochs=1000)
    bank = Bank(pocket_base(), slots=SLOTS, max_rank=max(t.recipe.rank for t in trials))
    for slot, trial in enumerate(trials):
        bank.admit(slot, trial.recipe, trial.epoch_texts, seed=trial.seed)
    return bank


def _take_steps(bank: Bank) -> None:
    for _ in range(STEPS):
        bank.step()


def _profile(bank: Bank) -> tuple[Counter[str], int]:
    """Return each kind's share of the time, and the operations in matrix products."""
    begun = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        _take_steps(bank)
        wall = time.perf_counter() - begun
    shares: Counter[str] = Counter()
    operations = 0
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            shares[_KINDS.get(event.key, _ELEMENTWISE)] += event.self_cpu_time_total / 1e6 / wall
        if event.key in _KINDS:
            operations += event.flops
    shares[_PYTHON] = 1 - shares.total()
    return shares, operations


def _full_rate() -> float:
    """Return how many floating point operations a second a large matrix product does."""
    one, other = torch.randn(2, WIDTH, WIDTH)
    seconds = []
    for _ in range(7):
        begun = time.perf_counter()
        torch.mm(one, other)
        seconds.append(time.perf_counter() - begun)
    return 2 * WIDTH**3 / median(seconds)
