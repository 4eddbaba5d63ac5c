"""Says what an adapter takes: its size, its training, how fast it answers, and the memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.findings import Findings
from analysis.points import Point
from analysis.wording import MISSING, say_bytes, say_count, say_duration
from data.measurements import AdapterCost
from storage.records import SittingRecord

RESOURCE_TITLES = (
    "trial",
    "epochs",
    "trained tokens",
    "time of the trial",
    "trained weights",
    "file",
    "answers with it, tokens/s",
    "without it, tokens/s",
)

RESOURCES_NOTE = (
    "The time of a trial is all of it, training and being asked beside the others. The rates were "
    "measured once after the search, adapter and untouched model in turns with the same questions "
    "in one batch."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """What all workers on one kind of device did, and the most memory that any of them held.

    `slots` is how many adapters they trained at once; the rate and the peak are None where no
    worker told.
    """

    device: str
    slots: int
    trained_tokens_per_second: float | None
    peak_memory_bytes: int | None


def resource_rows(findings: Findings) -> tuple[tuple[str, ...], ...]:
    """Return a row of words per member of the front under `RESOURCE_TITLES`."""
    costs = {(cost.trial, cost.epoch): cost for cost in findings.adapter_costs}
    return tuple(
        _row(findings, point, costs.get((point.trial, point.epoch))) for point in findings.front
    )


def _row(findings: Findings, point: Point, cost: AdapterCost | None) -> tuple[str, ...]:
    seconds = next(
        trial.costs.seconds if trial.costs else None
        for trial in findings.record.trials
        if trial.number == point.trial
    )
    trial = (
        str(point.trial),
        str(point.epoch),
        say_count(point.measurement.trained_tokens),
        say_duration(seconds),
    )
    if cost is None:
        return *trial, *[MISSING] * 4
    return (
        *trial,
        say_count(cost.parameters),
        say_bytes(cost.file_bytes),
        f"{cost.tokens_per_second:,.0f}",
        f"{cost.base_tokens_per_second:,.0f}",
    )


def device_uses(sittings: Sequence[SittingRecord]) -> tuple[DeviceUse, ...]:
    """Return what the workers of each kind of device did, in order of their first sitting.

    Devices that differ only in their number are of one kind.
    """
    by_device: defaultdict[str, list[SittingRecord]] = defaultdict(list)
    for sitting in sittings:
        by_device[_kind(sitting.device)].append(sitting)
    return tuple(_use(device, own) for device, own in by_device.items())


def _kind(device: str) -> str:
    """Return "cuda (NVIDIA A100)" of "cuda:1 (NVIDIA A100)"."""
    place, space, card = device.partition(" ")
    return f"{place.partition(':')[0]}{space}{card}"


def _use(device: str, sittings: Sequence[SittingRecord]) -> DeviceUse:
    states = [sitting.state for sitting in sittings if sitting.state is not None]
    seconds = sum(state.training_seconds for state in states)
    return DeviceUse(
        device=device,
        slots=max(sitting.slots for sitting in sittings),
        trained_tokens_per_second=(
            sum(state.trained_tokens for state in states) / seconds if seconds else None
        ),
        peak_memory_bytes=max(
            (state.peak_memory_bytes for state in states if state.peak_memory_bytes is not None),
            default=None,
        ),
    )


def say_device_uses(findings: Findings) -> tuple[str, ...]:
    """Return a sentence per kind of device: how fast a worker trains there, and its memory."""
    return tuple(map(_say_use, device_uses(findings.sittings)))


def _say_use(use: DeviceUse) -> str:
    rate = use.trained_tokens_per_second
    trained = f"a worker's training speed was {MISSING}"
    if rate is not None:
        trained = f"a worker trains {rate:,.0f} tokens a second"
        if use.slots > 1:
            trained += f", with {use.slots} adapters at once {rate / use.slots:,.0f} of each"
    return f"On {use.device} {trained}. Its peak memory: {say_bytes(use.peak_memory_bytes)}."
