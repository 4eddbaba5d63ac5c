"""The peak memory of one way of doing the work, seen in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.measuring import peak_memory_mib


def peak_alone_mib(work: Callable[..., Any], *arguments: Any) -> int:
    """Return the most memory in MiB that a new process has had after doing some work.

    Python, torch and the model are part of it; `work` must be importable by name.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as processes:
        return processes.submit(_peak_of, work, arguments).result()


def _peak_of(work: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    work(*arguments)
    return round(peak_memory_mib())
