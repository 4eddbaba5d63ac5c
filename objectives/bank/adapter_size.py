"""Says how large a saved adapter is, without loading it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from objectives.bank.loading import WEIGHTS_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSize:
    """An adapter's trained weights, and the bytes of their file."""

    parameters: int
    file_bytes: int


def adapter_size(folder: Path) -> AdapterSize:
    """Return the size of the adapter in a folder, as PEFT writes it."""
    path = folder / WEIGHTS_FILE
    with safe_open(path, framework="numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    return AdapterSize(parameters=sum(map(math.prod, shapes)), file_bytes=path.stat().st_size)
