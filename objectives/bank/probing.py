"""Finds out how many adapters to train at once, by training a few steps with more and more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from data.recipes import Recipe
from objectives.bank.bank import Bank, EpochTexts
from objectives.models.base import BaseModel
from objectives.models.machine.memory import is_out_of_memory, release_memory
from objectives.models.machine.memory_limit import forget_peak, peak_gpu_bytes, room_on
from objectives.models.machine.placement import devices_of

_STEPS = 5  # of which the fastest counts: whatever else runs on a machine only slows steps down

# Times that differ by less are taken as equal: a machine's noise must not decide.
_AS_FAST = 0.9

# One number of slots that gains nothing may be noise; after two the search ends.
_VAIN_ATTEMPTS = 2

# The share of a device's memory that training may take; asking needs some, too.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What training `slots` adapters at once takes.

    `peak_bytes` is the most that was held on any one GPU, None on a CPU.
    """

    slots: int
    seconds_per_token: float
    peak_bytes: int | None


def choose_slots(
    base: BaseModel,
    recipe: Recipe,
    texts_of: Callable[[int], EpochTexts],
    *,
    most: int,
    gradient_checkpointing: bool = False,
    limit_bytes: int | None = None,
    on_probed: Callable[[Probed], None] = lambda _: None,
) -> int:
    """Return the number of slots, a power of two up to `most`, that trains a token fastest.

    Of those within a tenth of the fastest it is the largest, so that the choice is nearly always
    the same on a machine. The search ends after two numbers that are not faster by a tenth than
    all before, or where the device's memory does not suffice.

    Args:
        base: The model.
        recipe: The largest that will be trained.
        texts_of: Returns the training texts of a trial, by its seed.
        most: The most slots to try; below 1 counts as 1.
        gradient_checkpointing: As the bank will be made.
        limit_bytes: The most of each GPU that may be used; None for all of it.
        on_probed: Receives every attempt.

    Raises:
        torch.OutOfMemoryError: If not even one adapter can be trained.
    """
    seen: list[Probed] = []
    slots, vain = 1, 0
    while slots <= max(1, most) and vain < _VAIN_ATTEMPTS:
        try:
            probed = probe(base, recipe, texts_of, slots, gradient_checkpointing)
        except (RuntimeError, MemoryError) as error:
            if slots == 1 or not is_out_of_memory(error):
                raise
            probed = None
        if probed is None:
            release_memory()
            break
        on_probed(probed)
        if slots > 1 and not _fits(probed, base, limit_bytes):
            break
        fastest = min((each.seconds_per_token for each in seen), default=float("inf"))
        vain = vain + 1 if probed.seconds_per_token > _AS_FAST * fastest else 0
        seen.append(probed)
        slots *= 2
    # More than will be trained at once was tried, and is no part of what the study takes.
    forget_peak(devices_of(base.model))
    fastest = min(each.seconds_per_token for each in seen)
    return max(each.slots for each in seen if _AS_FAST * each.seconds_per_token <= fastest)


def probe(
    base: BaseModel,
    recipe: Recipe,
    texts_of: Callable[[int], EpochTexts],
    slots: int,
    gradient_checkpointing: bool,
) -> Probed:
    """Train a few steps with so many slots, and return what that takes.

    Raises:
        torch.OutOfMemoryError: If they do not fit; on a CPU a RuntimeError.
    """
    devices = devices_of(base.model)
    forget_peak(devices)
    bank = Bank(
        base,
        slots=slots,
        max_rank=recipe.rank,
        gradient_checkpointing=gradient_checkpointing,
        halves_when_full=False,
    )
    for slot in range(slots):
        bank.admit(slot, recipe, texts_of(slot), seed=slot)
    bank.step()
    seconds_per_token = []
    for _ in range(_STEPS):
        before = sum(bank.progress(slot).trained_tokens for slot in range(slots))
        begun = time.perf_counter()
        bank.step()
        seconds = time.perf_counter() - begun
        trained = sum(bank.progress(slot).trained_tokens for slot in range(slots)) - before
        seconds_per_token.append(seconds / max(1, trained))
    return Probed(
        slots=slots,
        seconds_per_token=min(seconds_per_token),
        peak_bytes=peak_gpu_bytes(devices),
    )


def _fits(probed: Probed, base: BaseModel, limit_bytes: int | None) -> bool:
    room = room_on(devices_of(base.model), limit_bytes)
    return probed.peak_bytes is None or room is None or probed.peak_bytes <= _MEMORY_SHARE * room
