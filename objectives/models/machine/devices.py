"""What hardware torch can use here, and what lies idle."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from objectives.models.base import ModelError
from objectives.models.machine.memory import is_out_of_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device torch can compute on; its memory is None where torch cannot tell."""

    name: str
    kind: str
    total_bytes: int | None


def list_devices() -> tuple[Device, ...]:
    """Return the GPUs that torch can use, and the CPU last.

    What is free is not asked: that takes some hundred megabytes of each GPU, which a worker on
    another one would keep.
    """
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            Device(name=f"cuda:{index}", kind=properties.name, total_bytes=properties.total_memory)
        )
    cpu = Device(name="cpu", kind=f"{torch.get_num_threads()} threads", total_bytes=None)
    return (*gpus, cpu)


def free_bytes(gpu: str) -> int:
    """Return how much of a GPU's memory is free."""
    return int(torch.cuda.mem_get_info(gpu)[0])


def still_computes(device: torch.device) -> bool:
    """Return whether a device computes at all: after some errors a GPU does not, for this process.

    Such are a failed assertion in a kernel or a broken memory. A full memory is none of them.
    """
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        return is_out_of_memory(error)
    return True


def cuda_build() -> str | None:
    """Return the version of CUDA that torch was built for; None of a build for CPUs."""
    return torch.version.cuda


def default_device() -> str:
    """Return "cuda" where torch can use one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        ModelError: Naming the device and those that are there.
    """
    known = [device.name for device in list_devices()]
    if name not in known and not (name == "cuda" and len(known) > 1):
        remedy = unused_gpu_remedy()
        raise ModelError(
            f"device: {name!r} is not there; torch can use {', '.join(known)}"
            + (f"; {remedy}" if remedy else "")
        )


def available_cores() -> int:
    """Return how many cores this process may run on, which can be fewer than there are."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux tells
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return cores


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads on the CPU; by default one for every available core.

    Left to itself torch counts the cores of the machine, also in a container that may use a few.
    What the variable OMP_NUM_THREADS says is kept.
    """
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    torch.set_num_threads(threads or available_cores())


def driver_gpus() -> tuple[str, ...]:
    """Return the GPUs that NVIDIA's driver lists, whether torch can use them or not."""
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return ()  # a driver that does not answer lists nothing
    return tuple(listed.stdout.strip().splitlines()) if listed.returncode == 0 else ()


def unused_gpu_remedy() -> str | None:
    """Return what to do about a GPU that is there but that torch cannot use; None if none is."""
    gpus = driver_gpus()
    if not gpus or torch.cuda.is_available():
        return None
    return (
        f"a GPU is there ({gpus[0]}) but this torch ({torch.__version__}) cannot use it; install "
        "a CUDA build of torch in this environment"
    )
