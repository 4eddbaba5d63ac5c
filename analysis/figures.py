"""Draws a study's findings with plotly; every figure is a pure function of the findings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from analysis.findings import Findings
from analysis.importance import MIN_TRIALS, OBJECTIVES, rank_settings
from analysis.points import Point
from analysis.progress import follow_hypervolume
from analysis.wording import (
    list_settings,
    say_counted,
    say_estimate,
    say_sampling,
    show_text,
)
from data.measurements import Estimate, Measurement
from data.recipes import GREEDY

# Okabe and Ito (2008): told apart with every common colour blindness.
BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A9099"
_FAINT, _GRID = "rgba(128, 134, 144, 0.5)", "rgba(128, 134, 144, 0.22)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_INK = "#333A44"


def draw_front(findings: Findings) -> go.Figure:
    """Return recall against knowledge loss: all points, the base, the bounds, and two fronts.

    Up and to the left is better. Trials with and without rehearsal have a colour and a front line
    each; what trials measured on the way is small, a pruned trial's last measurement is hollow.
    """
    figure = _figure(
        "Recall of the new facts against knowledge loss", height=580, space_for_legend=48
    )
    _draw_bounds(figure, findings)
    last_of = {point.trial: point for point in findings.points}
    groups = (
        ("with rehearsal", BLUE, True, findings.front_with_rehearsal),
        ("without rehearsal", VERMILION, False, findings.front_without_rehearsal),
    )
    for name, colour, rehearses, front in groups:
        own = [point for point in findings.points if point.rehearses == rehearses]
        on_the_way = [point for point in own if not _is_last(point, last_of)]
        ended = [point for point in own if _is_last(point, last_of) and not _is_stopped(point)]
        _add_points(figure, on_the_way, name, colour, size=4, opacity=0.45, in_legend=False)
        _add_points(figure, ended, name, colour, size=8, opacity=0.9)
        _add_front_line(figure, front, f"front {name}", colour, findings.reference.knowledge_loss)
    _add_points(
        figure,
        [point for point in last_of.values() if _is_stopped(point)],
        "pruned",
        GREY,
        size=8,
        symbol="circle-open",
    )
    if findings.recommended is not None:
        _add_points(
            figure,
            [findings.recommended],
            "recommended",
            GREEN,
            size=17,
            symbol="circle-open",
            line_width=3,
        )
    if findings.base is not None and findings.base.recall.value is not None:
        figure.add_trace(
            go.Scatter(
                x=[0.0],
                y=[findings.base.recall.value],
                name="untouched model",
                mode="markers",
                marker={"symbol": "diamond", "size": 12, "color": PURPLE},
                hovertext=f"untouched model<br>recall {say_estimate(findings.base.recall)}",
                hoverinfo="text",
            )
        )
    highest_loss = max(
        [findings.reference.knowledge_loss, *(point.knowledge_loss for point in findings.points)]
    )
    figure.update_xaxes(
        title_text="knowledge loss: known before, wrong now (lower is better)",
        tickformat=".0%",
        range=[-0.02, min(1.02, highest_loss + 0.04)],
    )
    figure.update_yaxes(
        title_text="recall of the new facts (higher is better)",
        tickformat=".0%",
        range=[-0.03, 1.05],
    )
    return figure


def draw_recall_by_style(findings: Findings) -> go.Figure:
    """Return recall on novel wordings per prompt style, recommended member beside the base."""
    figure = _figure("Recall by the way the question is put", height=380)
    if findings.recommended is None:
        return _say_nothing(figure, "no point of this study beats the reference")
    chosen = findings.recommended
    for name, colour, measurement in (
        ("untouched model", PURPLE, findings.base),
        (f"trial {chosen.trial}, {say_counted(chosen.epoch, 'epoch')}", BLUE, chosen.measurement),
    ):
        if measurement is not None:
            _add_bars(figure, name, colour, _styles_of(measurement))
    figure.update_yaxes(title_text="recall, novel wordings", tickformat=".0%", range=[0, 1.05])
    figure.update_xaxes(title_text="prompt style")
    return figure


def draw_rings(findings: Findings) -> go.Figure:
    """Return losses and gains of the recommended member in each ring of what was known."""
    figure = _figure("What was forgotten, and what came along, by ring", height=380)
    if findings.recommended is None:
        return _say_nothing(figure, "no point of this study beats the reference")
    rings = findings.recommended.measurement.rings
    if not rings:
        return _say_nothing(figure, "no probe was asked")
    _add_bars(
        figure, "lost, of those known", VERMILION, [(ring.ring, ring.loss) for ring in rings]
    )
    gains = [
        (ring.ring, ring.gained / (ring.asked - ring.known))
        for ring in rings
        if ring.asked > ring.known
    ]
    if gains:
        figure.add_trace(
            go.Bar(
                x=[escape(ring) for ring, _ in gains],
                y=[share for _, share in gains],
                name="gained, of those not known",
                marker={"color": GREEN},
                hovertemplate="%{x}: %{y:.1%}<extra>gained</extra>",
            )
        )
    figure.update_yaxes(
        title_text="share of the ring's probes", tickformat=".0%", rangemode="tozero"
    )
    figure.update_xaxes(title_text="ring, from near the new facts to far")
    return figure


def draw_importance(findings: Findings) -> go.Figure:
    """Return how much each setting separates the study's better half from all trials."""
    figure = _figure("Which setting matters", height=460)
    ranked = {
        objective: importance
        for objective in OBJECTIVES
        if (importance := rank_settings(findings.record, findings.reference, objective))
    }
    if not ranked:
        return _say_nothing(figure, f"needs {MIN_TRIALS} trials with settings that differ")
    shares = [importance.shares for importance in ranked.values()]
    settings = sorted(
        {name for share in shares for name in share},
        key=lambda name: (sum(share.get(name, 0.0) for share in shares), name),
    )
    for objective, importance in reversed(ranked.items()):
        figure.add_trace(
            go.Bar(
                y=settings,
                x=[importance.shares.get(setting) for setting in settings],
                name=f"for the {objective} ({importance.trials} trials)",
                orientation="h",
                marker={"color": BLUE if objective == "recall" else VERMILION},
                hovertemplate="%{y}: %{x:.0%}<extra>" + objective + "</extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.35, legend={"traceorder": "reversed"})
    figure.update_xaxes(
        title_text="share of the importance (PED-ANOVA)", tickformat=".0%", rangemode="tozero"
    )
    figure.update_yaxes(showgrid=False, ticks="outside", tickcolor="rgba(0,0,0,0)")
    return figure


def draw_learning_curves(findings: Findings) -> tuple[go.Figure, go.Figure]:
    """Return recall and knowledge loss against trained tokens, a line for each trial."""
    on_front = {point.trial for point in findings.front}
    # Highlighted trials last, so that they lie above the others.
    trials = sorted(findings.record.trials, key=lambda trial: trial.number in on_front)
    figures = []
    for title, axis, objective in (
        ("Recall while training", "recall of the new facts", "recall"),
        ("Knowledge loss while training", "knowledge loss", "knowledge_loss"),
    ):
        figure = _figure(title, height=380, space_for_legend=0)
        for trial in trials:
            curve = [
                point
                for point in findings.points
                if point.trial == trial.number and point.sampling == GREEDY
            ]
            highlighted = trial.number in on_front
            colour = (BLUE if trial.recipe.rehearsal else VERMILION) if highlighted else _FAINT
            figure.add_trace(
                go.Scatter(
                    x=[point.measurement.trained_tokens for point in curve],
                    y=[getattr(point, objective) for point in curve],
                    mode="lines+markers",
                    line={"color": colour, "width": 2 if highlighted else 1},
                    marker={"size": 5 if highlighted else 3},
                    hovertext=[_describe(point) for point in curve],
                    hoverinfo="text",
                    showlegend=False,
                )
            )
        if not findings.points:
            _say_nothing(figure, "no trial was measured")
        figure.update_xaxes(title_text="trained tokens of the trial", rangemode="tozero")
        figure.update_yaxes(title_text=axis, tickformat=".0%", rangemode="tozero")
        figures.append(figure)
    recall, loss = figures
    return recall, loss


def draw_progress(findings: Findings) -> go.Figure:
    """Return the front's hypervolume against the tokens that all trials had trained by then."""
    figure = _figure("How the front grew: its hypervolume", height=340, space_for_legend=0)
    steps = follow_hypervolume(findings.record, findings.reference)
    if not steps:
        return _say_nothing(figure, "no trial was measured")
    figure.add_trace(
        go.Scatter(
            x=[step.trained_tokens for step in steps],
            y=[step.share for step in steps],
            mode="lines",
            line={"color": BLUE, "width": 2, "shape": "hv"},
            hovertemplate="%{x:,} tokens: %{y:.1%}<extra></extra>",
            showlegend=False,
        )
    )
    figure.update_xaxes(title_text="trained tokens, all trials together", rangemode="tozero")
    figure.update_yaxes(title_text="share of the possible", tickformat=".0%", range=[0, 1.02])
    return figure


def _figure(title: str, *, height: int, space_for_legend: int = 28) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        title={
            "text": title,
            "x": 0.012,
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 14},
            "xref": "container",
            "font": {"size": 16, "weight": 600},
        },
        template="none",
        font={"family": _FONT, "size": 13, "color": _INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=height,
        margin={"l": 64, "r": 16, "t": 56 + space_for_legend, "b": 56},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"align": "left", "font": {"family": _FONT}},
    )
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(
            gridcolor=_GRID,
            zeroline=False,
            automargin=True,
            title={"standoff": 10, "font": {"size": 13}},
        )
    return figure


def _say_nothing(figure: go.Figure, reason: str) -> go.Figure:
    figure.add_annotation(
        text=f"not measured: {escape(reason)}",
        showarrow=False,
        xref="paper",
        yref="paper",
        x=0.5,
        y=0.5,
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def _draw_bounds(figure: go.Figure, findings: Findings) -> None:
    reference = findings.reference
    figure.add_shape(
        type="rect",
        x0=0,
        x1=reference.knowledge_loss,
        y0=reference.recall,
        y1=1,
        line={"color": GREY, "width": 1, "dash": "dot"},
        layer="below",
    )
    figure.add_annotation(
        text="counted from here on",
        x=reference.knowledge_loss,
        y=reference.recall,
        xanchor="right",
        yanchor="bottom",
        showarrow=False,
        font={"size": 11, "color": GREY},
    )


def _is_last(point: Point, last_of: dict[int, Point]) -> bool:
    return point.epoch == last_of[point.trial].epoch


def _is_stopped(point: Point) -> bool:
    return point.state in ("pruned", "failed")


def _add_points(
    figure: go.Figure,
    points: Sequence[Point],
    name: str,
    colour: str,
    *,
    size: int,
    symbol: str = "circle",
    opacity: float = 1.0,
    line_width: float = 1.2,
    in_legend: bool = True,
) -> None:
    if not points:
        return
    figure.add_trace(
        go.Scatter(
            x=[point.knowledge_loss for point in points],
            y=[point.recall for point in points],
            name=name,
            mode="markers",
            showlegend=in_legend,
            marker={
                "color": colour,
                "size": size,
                "symbol": symbol,
                "opacity": opacity,
                "line": {"width": line_width, "color": colour},
            },
            hovertext=[_describe(point) for point in points],
            hoverinfo="text",
        )
    )


def _add_front_line(
    figure: go.Figure, front: Sequence[Point], name: str, colour: str, highest_loss: float
) -> None:
    if not front:
        return
    by_loss = sorted(front, key=lambda point: point.knowledge_loss)
    # Steps, because between two members nothing better than the left one was reached.
    figure.add_trace(
        go.Scatter(
            x=[*(point.knowledge_loss for point in by_loss), highest_loss],
            y=[*(point.recall for point in by_loss), by_loss[-1].recall],
            name=name,
            mode="lines",
            line={"color": colour, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )
    )


def _describe(point: Point) -> str:
    settings = list_settings(point.recipe)
    lines = [
        f"<b>trial {point.trial}, {say_counted(point.epoch, 'epoch')}</b> ({point.state})",
        f"recall {say_estimate(point.measurement.recall)}",
        f"knowledge loss {say_estimate(point.measurement.knowledge_loss)}",
        f"sampling {escape(say_sampling(point.sampling))}",
        *(f"{name} {escape(value)}" for name, value in settings if name != "epochs"),
    ]
    return "<br>".join(lines)


def _styles_of(measurement: Measurement) -> list[tuple[str, Estimate]]:
    return [
        (part.style, part.recall)
        for part in measurement.recall_parts
        if part.phrasing == "validation" and part.style is not None
    ]


def _add_bars(
    figure: go.Figure, name: str, colour: str, bars: Sequence[tuple[str, Estimate]]
) -> None:
    measured = [(label, bar) for label, bar in bars if bar.value is not None]
    values = [bar.value or 0.0 for _, bar in measured]
    error: dict[str, Any] = {
        "type": "data",
        "symmetric": False,
        "array": [(bar.high or 0.0) - (bar.value or 0.0) for _, bar in measured],
        "arrayminus": [(bar.value or 0.0) - (bar.low or 0.0) for _, bar in measured],
        "thickness": 1.2,
        "width": 4,
        "color": GREY,
    }
    figure.add_trace(
        go.Bar(
            x=[escape(show_text(label)) for label, _ in measured],
            y=values,
            name=escape(name),
            marker={"color": colour},
            error_y=error,
            hovertext=[f"{escape(label)}: {say_estimate(bar)}" for label, bar in measured],
            hoverinfo="text",
        )
    )
    figure.update_layout(barmode="group", bargap=0.35, bargroupgap=0.08)
    figure.update_xaxes(showgrid=False)
