"""Runs one part of the benchmarks; `python -m benchmarks` does so in a process of its own."""

from __future__ import annotations

import importlib
import os

from objectives.models.machine.devices import available_cores, use_threads


def run_part(part: str, runs: int) -> None:
    """Run a part with a thread per core, here and in all processes that it starts."""
    use_threads(None)
    os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    importlib.import_module(f"benchmarks.{part}").run(runs)
