"""Says what trials reached by the formats that their facts were written in."""

from __future__ import annotations

from collections import defaultdict

from analysis.findings import Findings
from analysis.points import Point, recommend
from analysis.wording import say_estimate, say_formats

FORMAT_TITLES = ("trained as", "trials", "its best member's recall", "and knowledge loss")


def format_rows(findings: Findings) -> tuple[tuple[str, ...], ...]:
    """Return a row of words under `FORMAT_TITLES` per mixture of formats, the best first.

    A mixture's best member is the one that would be recommended had there been no other mixture.
    """
    points = defaultdict[str, list[Point]](list)
    for point in findings.points:
        points[say_formats(point.recipe)].append(point)
    best = {name: recommend(own) for name, own in points.items()}
    named = [(name, point) for name, point in best.items() if point is not None]
    named.sort(key=lambda pair: pair[1].knowledge_loss - pair[1].recall)
    return tuple(
        (
            name,
            str(len({each.trial for each in points[name]})),
            say_estimate(point.measurement.recall),
            say_estimate(point.measurement.knowledge_loss),
        )
        for name, point in named
    )
