"""Times several ways of doing the same work in turn, and writes what was seen with the machine."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
RUNS = 5  # of which the median is quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way of doing the work: `run` does `share` of it once and returns how it came out.

    `share` is below 1 where the work is the same many times over and only a part of it is done;
    the time is then divided by it, and the table says so. The outcome is a number that must be the
    same for all ways within noise, such as a loss or a recall; None where there is none.
    """

    name: str
    run: Callable[[], float | None]
    share: float = 1.0
    is_ours: bool = False
    settings: str = ""  # how it was run, in words, for the table


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What was seen of one case: seconds for the whole work, in every run, and the outcomes."""

    name: str
    is_ours: bool
    settings: str
    share: float
    seconds: tuple[float, ...]
    outcomes: tuple[float | None, ...]

    @property
    def median_seconds(self) -> float:
        """Return the median over the runs."""
        return statistics.median(self.seconds)


def take_turns(cases: Sequence[Case], *, runs: int = RUNS, warm_up: bool = True) -> list[Timing]:
    """Return the timings of cases that are run in turn, so that all see the same machine.

    Args:
        cases: What to time.
        runs: How often each is timed.
        warm_up: Run each once before without timing it.
    """
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    outcomes: dict[str, list[float | None]] = {case.name: [] for case in cases}
    for turn in range(-1 if warm_up else 0, runs):
        for case in cases:
            begun = time.perf_counter()
            outcome = case.run()
            taken = (time.perf_counter() - begun) / case.share
            print(f"  {turn + 1}/{runs} {case.name}: {taken:.3f} s", file=sys.stderr, flush=True)
            if turn >= 0:
                seconds[case.name].append(taken)
                outcomes[case.name].append(outcome)
    return [
        Timing(
            name=case.name,
            is_ours=case.is_ours,
            settings=case.settings,
            share=case.share,
            seconds=tuple(seconds[case.name]),
            outcomes=tuple(outcomes[case.name]),
        )
        for case in cases
    ]


def describe_machine() -> dict[str, str | int | float]:
    """Return what the timings depend on: processor, memory, threads, versions."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    described: dict[str, str | int | float] = {
        "processor": processor,
        "cores": os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
        described["gpu_memory_gib"] = round(
            torch.cuda.get_device_properties(0).total_memory / 2**30, 1
        )
    for package in ("torch", "transformers", "peft", "accelerate", "optuna"):
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            described[package] = "not installed"
    return described


def peak_memory_mib() -> float:
    """Return the most memory this process has had, in MiB; on a GPU, the device's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        # Not what getrusage says on Linux: there a new process begins with its parent's peak.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, IndexError):
        # Linux counts KiB, macOS bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def write_result(
    name: str,
    timings: Mapping[str, Sequence[Timing]],
    *,
    facts: Mapping[str, str | int | float],
    folder: Path = RESULTS,
) -> Path:
    """Write timings, by the part of the benchmark they belong to, as JSON.

    Args:
        name: Of the benchmark, and of the file.
        timings: What was measured.
        facts: What else is worth knowing, such as K, padding share, peak memory.
        folder: Where results are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    written = {
        "benchmark": name,
        "measured": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(),
        "facts": dict(facts),
        "timings": {
            part: [asdict(timing) | {"median_seconds": timing.median_seconds} for timing in each]
            for part, each in timings.items()
        },
    }
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return path
