"""Keeps to a limit of a device's memory, and says what would fit where it is too small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from data.model_profiles import ModelProfile, largest_profiles
from objectives.models.base import ModelError
from objectives.models.machine.devices import list_devices
from objectives.models.machine.footprint import (
    Demand,
    Footprint,
    ModelShape,
    Storing,
    config_of,
    estimate,
    shape_of,
)
from objectives.models.machine.placement import SPLIT

_GROUP_SIZE = 128  # what most people quantise with
_GIGA = 1e9


def cap_memory(device: str | None, limit_bytes: int | None) -> None:
    """Let torch use at most so much of each GPU that a device names; a CPU cannot be capped.

    Args:
        device: A torch device, "split" for all GPUs, or None for the one that is used by default.
        limit_bytes: None for no limit; one above a GPU's memory changes nothing.
    """
    if limit_bytes is None or device == "cpu":
        return
    gpus = {gpu.name: gpu.total_bytes for gpu in list_devices() if gpu.total_bytes is not None}
    for name, total in gpus.items():
        if device in (name, SPLIT) or (device in (None, "cuda") and name == "cuda:0"):
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), name)


def room_on(devices: Iterable[torch.device], limit_bytes: int | None) -> int | None:
    """Return how many bytes of each of a model's devices may be used, on the smallest of them.

    On a CPU it is the limit, and None without one: what is free there changes all the time.
    """
    rooms = [
        torch.cuda.get_device_properties(device).total_memory
        for device in devices
        if device.type == "cuda"
    ]
    if limit_bytes is not None:
        rooms.append(limit_bytes)
    return min(rooms, default=None)


def forget_peak(devices: Iterable[torch.device]) -> None:
    """Let `peak_gpu_bytes` count from now on."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


def peak_gpu_bytes(devices: Iterable[torch.device]) -> int | None:
    """Return the most that this process has held on any one of these GPUs; None without a GPU.

    It is counted from the beginning, or from the last `forget_peak`.
    """
    return max(
        (torch.cuda.max_memory_allocated(each) for each in devices if each.type == "cuda"),
        default=None,
    )


def require_room(
    shape: ModelShape, storing: Storing, demand: Demand, *, limit_bytes: int
) -> Footprint:
    """Return the estimate of a demand if one slot can train and be asked within a limit.

    Raises:
        ModelError: Naming what is needed for what, the limit, and what would fit.
    """
    footprint = estimate(shape, storing, demand)
    if footprint.least > limit_bytes:
        raise too_little_memory(shape, storing, demand, limit_bytes=limit_bytes)
    return footprint


def too_little_memory(
    shape: ModelShape, storing: Storing, demand: Demand, *, limit_bytes: int, is_set: bool = True
) -> ModelError:
    """Return the error that a limit is too small, naming what is needed and what would fit.

    Args:
        shape: Of the model.
        storing: How it is held.
        demand: What is to be done with it.
        limit_bytes: What may be used.
        is_set: Whether somebody set that limit; otherwise it is all that the device has.
    """
    footprint = estimate(shape, storing, demand)
    remedies = list(_remedies(shape, storing, demand, limit_bytes))
    fitting = "; ".join(remedies) if remedies else "more memory"
    limit, least = say_gigabytes(limit_bytes), say_gigabytes(footprint.least)
    problem = (
        f"memory_limit: {limit} is not allowed; it must be at least {least}"
        if is_set
        else f"device: its memory, {limit}, does not suffice; it takes at least {least}"
    )
    return ModelError(
        f"{problem}: {say_gigabytes(footprint.weights.total)} for the weights, "
        f"{say_gigabytes(footprint.slot + footprint.passing)} to train one adapter, "
        f"{say_gigabytes(footprint.row)} for a row that is asked. What would fit: {fitting}"
    )


def say_gigabytes(count: int) -> str:
    """Return bytes in GB, with two digits or more."""
    giga = count / _GIGA
    return f"{giga:.0f} GB" if giga >= 10 else f"{giga:.2g} GB"


def _remedies(
    shape: ModelShape, storing: Storing, demand: Demand, limit_bytes: int
) -> Iterator[str]:
    """Yield what would make a study fit, the least change first."""
    saving = replace(demand, gradient_checkpointing=True)
    if estimate(shape, storing, saving).least <= limit_bytes:
        yield "gradient_checkpointing = true"
    packed = replace(storing, group_size=_GROUP_SIZE)
    if storing.group_size is None:
        for changed, more in ((demand, ""), (saving, " with gradient_checkpointing = true")):
            if estimate(shape, packed, changed).least <= limit_bytes:
                yield f"the same model in 4 bits (`remember quantise`){more}"
                break
    names = [each.name for each in profiles_within(limit_bytes, saving, dtype=storing.dtype)]
    if names:
        yield f"with gradient_checkpointing a smaller model: {', '.join(names)}"


def profiles_within(
    limit_bytes: int, demand: Demand, *, dtype: torch.dtype
) -> Sequence[ModelProfile]:
    """Return the largest of the models known by name that a demand can be made of, at most 3.

    They are held in a floating point type, those that are quantised as they are.
    """

    def fits(profile: ModelProfile) -> bool:
        storing = Storing(dtype=dtype, group_size=profile.group_size)
        return estimate(shape_of(config_of(profile)), storing, demand).least <= limit_bytes

    return largest_profiles(fits)
