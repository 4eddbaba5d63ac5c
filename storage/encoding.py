"""Writes values as columns hold them: dataclasses as JSON, purposes with their repeat."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from storage.records import Purpose

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def encode(value: DataclassInstance) -> str:
    """Return a dataclass as JSON with sorted keys; equal values of equal types give equal texts.

    pydantic's `TypeAdapter` reads it back equal.

    NaN and infinity are kept (as `NaN` and `Infinity`, which pydantic reads); its own writer would
    turn them into null.
    """
    return json.dumps(asdict(value), ensure_ascii=False, sort_keys=True)


def encode_purpose(purpose: Purpose, repeat: int) -> str:
    """Return a purpose, with the number of its repeat if that is not 0."""
    return f"{purpose} {repeat}" if repeat else purpose


def decode_purpose(text: str) -> tuple[Purpose, int]:
    """Return the purpose and the repeat that `encode_purpose` wrote."""
    purpose, _, repeat = text.partition(" ")
    return cast(Purpose, purpose), int(repeat or 0)
