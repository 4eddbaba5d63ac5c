"""Seeds: a study's own seed, an asked trial's index and a purpose make every other one."""

from __future__ import annotations

import hashlib
from typing import Literal

SeedPurpose = Literal["sampler", "training", "noise", "repeat"]


def derive_seed(study_seed: int, asked_index: int, purpose: SeedPurpose) -> int:
    """Return a seed in [0, 2**32) that no worker, restart or order of events can change."""
    text = f"{study_seed}/{asked_index}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def derive_repeat_seed(study_seed: int, asked_index: int, number: int) -> int:
    """Return the training seed of a trial's repeat; `number` counts from 1."""
    return derive_seed(derive_seed(study_seed, asked_index, "repeat"), number, "repeat")
