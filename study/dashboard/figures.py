"""Makes the report's figures small enough for the dashboard, which sends them at every poll."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from analysis.figures import (
    draw_front,
    draw_importance,
    draw_learning_curves,
    draw_progress,
    draw_recall_by_style,
    draw_rings,
)
from analysis.findings import Findings

MOST_BYTES_EACH = 60_000
MOST_BYTES_TOGETHER = 300_000

_HOVER_LINES = 3  # the dashboard shows a trial's settings itself
_FEWEST_POINTS = 12
_PER_POINT = ("x", "y", "hovertext")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallFigures:
    """Figures as plotly's JSON by their stable ids, and the ids of those that stayed too large."""

    figures: Mapping[str, str]
    dropped: tuple[str, ...]


def draw_small(
    findings: Findings,
    *,
    most_bytes_each: int = MOST_BYTES_EACH,
    most_bytes_together: int = MOST_BYTES_TOGETHER,
) -> SmallFigures:
    """Return the report's figures within bounds, the most telling ones first.

    Hover texts are shortened, numbers rounded, and where that is not enough curves and clouds of
    points are thinned out; what is still too large, or exceeds what all may take, is dropped.
    """
    recall_curves, loss_curves = draw_learning_curves(findings)
    drawn: dict[str, Callable[[], go.Figure]] = {
        "remember-front": lambda: draw_front(findings),
        "remember-recall-curves": lambda: recall_curves,
        "remember-loss-curves": lambda: loss_curves,
        "remember-progress": lambda: draw_progress(findings),
        "remember-importance": lambda: draw_importance(findings),
        "remember-recall-by-style": lambda: draw_recall_by_style(findings),
        "remember-rings": lambda: draw_rings(findings),
    }
    figures: dict[str, str] = {}
    dropped = []
    left_bytes = most_bytes_together
    for name, draw in drawn.items():
        text = shrink(draw(), min(most_bytes_each, left_bytes))
        if text is None:
            dropped.append(name)
        else:
            figures[name] = text
            left_bytes -= len(text)
    return SmallFigures(figures=figures, dropped=tuple(dropped))


def shrink(figure: go.Figure, most_bytes: int) -> str | None:
    """Return a figure as plotly's JSON in ASCII, or None where it cannot be made small enough."""
    drawn: dict[str, Any] = json.loads(figure.to_json())
    layout, traces = drawn["layout"], drawn["data"]
    # The dashboard gives every figure the same height, and may be dark where ours are dark ink.
    layout.pop("height", None)
    layout.update(paper_bgcolor="white", plot_bgcolor="white")
    for trace in traces:
        if isinstance(trace.get("hovertext"), list):
            trace["hovertext"] = [_first_lines(text) for text in trace["hovertext"]]
    drawn = _rounded(drawn)
    while len(text := json.dumps(drawn, separators=(",", ":"), allow_nan=False)) > most_bytes:
        if not _thin(drawn["data"]):
            return None
    return text


def _first_lines(text: str) -> str:
    return "<br>".join(text.split("<br>")[:_HOVER_LINES])


def _rounded(value: Any) -> Any:
    """Return plotly's JSON with all its numbers in at most five significant digits."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list():
            return [_rounded(each) for each in value]
        case _:
            return value


def _thin(traces: list[dict[str, Any]]) -> bool:
    """Take away half of what there is most of; return whether anything was left to take."""
    largest = max(traces, key=_points, default=None)
    if largest is not None and _points(largest) > _FEWEST_POINTS:
        count = _points(largest)
        for key in _PER_POINT:
            if isinstance(largest.get(key), list) and len(largest[key]) == count:
                # The last point of a curve is where it came to.
                largest[key] = [*largest[key][:-1:2], largest[key][-1]]
        return True
    # Curves have no place in the legend; those of the front come last and stay.
    unnamed = [trace for trace in traces if trace.get("showlegend") is False]
    if len(unnamed) > _FEWEST_POINTS:
        for trace in unnamed[: len(unnamed) // 2]:
            traces.remove(trace)
        return True
    return False


def _points(trace: dict[str, Any]) -> int:
    x = trace.get("x")
    return len(x) if isinstance(x, list) and trace.get("type") == "scatter" else 0
