"""Writes frozen dataclasses as JSON text; pydantic's `TypeAdapter` reads them back equal."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def encode(value: DataclassInstance) -> str:
    """Return a dataclass as JSON with sorted keys; equal values of equal types give equal texts.

    NaN and infinity are kept (as `NaN` and `Infinity`, which pydantic reads); its own writer would
    turn them into null.
    """
    return json.dumps(asdict(value), ensure_ascii=False, sort_keys=True)
