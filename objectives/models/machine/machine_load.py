"""What a worker takes of its machine: memory and processor load."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from objectives.models.machine.memory_limit import peak_gpu_bytes

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLoad:
    """Memory that this process holds on its device, how much there is, and the machine's load.

    `load` is the mean number of processes that wanted a core over the last minute; None where the
    system does not tell.
    """

    memory_bytes: int
    memory_limit_bytes: int
    load: float | None


def describe_device(device: torch.device) -> str:
    """Return a device as torch names it, of a GPU also the card; at most 64 characters."""
    card = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"{device}{card}"[:64]


def measure_peak(devices: Iterable[torch.device]) -> int | None:
    """Return the most memory that this process has ever held, in bytes.

    With GPUs it is that of the fullest of them, by torch's own count, since it was found out how
    many adapters train at once; else main memory, where the system tells.
    """
    on_gpu = peak_gpu_bytes(devices)
    if on_gpu is not None:
        return on_gpu
    try:
        # Not what getrusage says on Linux: there a new process begins with its parent's peak.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        if resource is None:
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def measure_load(device: torch.device) -> MachineLoad:
    """Return what this process takes now; on a GPU its memory there, else the machine's."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        return MachineLoad(
            memory_bytes=torch.cuda.memory_reserved(device), memory_limit_bytes=total, load=load
        )
    return MachineLoad(
        memory_bytes=psutil.Process().memory_info().rss,
        memory_limit_bytes=psutil.virtual_memory().total,
        load=load,
    )
