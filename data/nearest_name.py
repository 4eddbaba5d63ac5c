"""Says in an error which name was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint_at(name: str, known: Iterable[str], *, otherwise: str, cutoff: float = 0.6) -> str:
    """Return `did you mean …?` with the known name nearest to a wrong one.

    Args:
        name: What was written.
        known: What could have been.
        otherwise: What to say if none is near.
        cutoff: How like the two must be, as `difflib` counts: 1 is equal.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise
