"""What a worker tells of its machine is what the system tells of the process."""

from __future__ import annotations

import psutil
import torch

from objectives.models.machine.machine_load import measure_load, measure_peak

CPU = torch.device("cpu")


# The system adds up what each thread holds, and only now and then.
INEXACT_BYTES = 2**24


def test_the_peak_of_a_process_is_at_least_what_it_holds_and_does_not_fall() -> None:
    peak, held = measure_peak([CPU]), psutil.Process().memory_info().rss
    assert peak is not None
    assert held - INEXACT_BYTES <= peak < psutil.virtual_memory().total
    more = 2**27
    block = torch.ones((max(0, peak - held) + more) // 4)
    larger = measure_peak([CPU])
    assert larger is not None
    assert larger >= peak + more - 2 * INEXACT_BYTES
    del block
    after = measure_peak([CPU])
    assert after is not None
    assert after >= larger - INEXACT_BYTES


def test_a_process_on_a_cpu_is_told_the_machines_memory() -> None:
    load = measure_load(CPU)
    assert 0 < load.memory_bytes < load.memory_limit_bytes
