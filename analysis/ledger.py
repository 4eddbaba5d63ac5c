"""The ledger of old knowledge: every probe that an adapter lost or gained, with both answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from analysis.examples import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The probes whose verdict changed, in the order they were asked."""

    lost: tuple[Example, ...]
    gained: tuple[Example, ...]


def keep_ledger(examples: Iterable[Example]) -> Ledger:
    """Return what was lost (known before, wrong now) and what was gained (the other way round).

    Probes that were not asked before, or of which an answer is unjudged, are in neither.
    """
    probes = [example for example in examples if _is_judged(example)]
    return Ledger(
        lost=tuple(e for e in probes if e.was_known and not e.after.is_correct),
        gained=tuple(e for e in probes if not e.was_known and e.after.is_correct),
    )


def _is_judged(example: Example) -> bool:
    return (
        example.prompt.phrasing == "probe"
        and example.before is not None
        and "unjudged" not in (example.before.label, example.after.label)
    )
