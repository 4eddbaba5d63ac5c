"""Writes report.html: one page with the answer, the figures and how it was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis import wording
from analysis.costs import add_costs
from analysis.examples import choose_examples, pair_verdicts
from analysis.figures import (
    draw_front,
    draw_importance,
    draw_learning_curves,
    draw_progress,
    draw_recall_by_style,
    draw_rings,
)
from analysis.files import write_whole
from analysis.findings import Findings
from analysis.floors import FLOOR_TITLES, FLOORS_NOTE, floor_rows
from analysis.formats import FORMAT_TITLES, format_rows
from analysis.judging import say_judge
from analysis.ledger import keep_ledger
from analysis.points import RECOMMENDATION_RULE
from analysis.repeats import REPEAT_TITLES, REPEATS_NOTE, repeat_rows
from analysis.resources import (
    RESOURCE_TITLES,
    RESOURCES_NOTE,
    resource_rows,
    say_device_uses,
)
from data.intervals import mcnemar_p_value
from data.manner import manner_of
from data.measurements import NOT_MEASURED, Estimate, Measurement, Verdict
from data.probes import MIN_KNOWN_PER_RING
from data.prompts import ALL_STYLES, PROMPT_STYLES
from data.recipes import GREEDY

_PHRASING_ROWS = ("trained", "validation", "test", "reverse", "two_hop")


def write_report(
    findings: Findings,
    *,
    verdicts_of: Callable[[int], Sequence[Verdict]],
    versions: Mapping[str, str],
    out: Path,
) -> None:
    """Write the report to `out`, whole or not at all.

    `verdicts_of` returns a measurement's verdicts by its id, `versions` are the packages' by name.
    """
    write_whole(out, render_report(findings, verdicts_of=verdicts_of, versions=versions))


def render_report(
    findings: Findings,
    *,
    verdicts_of: Callable[[int], Sequence[Verdict]],
    versions: Mapping[str, str],
) -> str:
    """Return the report as one HTML page that loads nothing from anywhere.

    Model output, questions and names are untrusted: the template escapes everything, and the page
    forbids itself the network.
    """
    recall_curves, loss_curves = draw_learning_curves(findings)
    base, best = findings.record.base, findings.recommended
    before, after = (
        (verdicts_of(base.id), verdicts_of(best.measurement_id)) if base and best else ((), ())
    )
    pairs = pair_verdicts(before, after)
    environment = Environment(
        loader=PackageLoader("analysis", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_keep_percent_with_number,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        findings=findings,
        record=findings.record,
        subject=findings.subject,
        words=wording,
        rule=RECOMMENDATION_RULE,
        floor_titles=FLOOR_TITLES,
        floor_rows=floor_rows(findings),
        floors_note=FLOORS_NOTE,
        judge=say_judge(findings),
        mcnemar=mcnemar_p_value,
        repeat_titles=REPEAT_TITLES,
        repeat_rows=repeat_rows(findings),
        repeats_note=REPEATS_NOTE,
        plotly_js=Markup(get_plotlyjs()),
        figures={
            "front": _embed(draw_front(findings)),
            "styles": _embed(draw_recall_by_style(findings)),
            "rings": _embed(draw_rings(findings)),
            "importance": _embed(draw_importance(findings)),
            "recall_curves": _embed(recall_curves),
            "loss_curves": _embed(loss_curves),
            "progress": _embed(draw_progress(findings)),
        },
        styles=_styles(findings),
        recall_rows=_recall_rows(findings),
        examples=choose_examples(pairs),
        ledger=keep_ledger(pairs),
        # Probes are asked greedily, whatever the member's own sampling.
        manner=manner_of(before, after, longest_tokens=GREEDY.max_new_tokens),
        formats=format_rows(findings),
        format_titles=FORMAT_TITLES,
        costs=add_costs(findings.record),
        resource_titles=RESOURCE_TITLES,
        resource_rows=resource_rows(findings),
        resources_note=RESOURCES_NOTE,
        device_uses=say_device_uses(findings),
        templated=sum(fact.templated for fact in findings.subject.new),
        min_known=MIN_KNOWN_PER_RING,
        versions=versions,
    )


def _keep_percent_with_number(value: object) -> object:
    """Return text with a no-break space before each percent sign; anything else unchanged."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return value.replace(" %", "\u00a0%")


def _embed(figure: go.Figure) -> Markup:
    # plotly writes "<" in its JSON as \u003c, so no text can end the script element.
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config={"displaylogo": False, "displayModeBar": False, "responsive": True},
        )
    )


def _styles(findings: Findings) -> tuple[str, ...]:
    """Return the prompt styles that are shown: a chat only where the model was asked in one."""
    measurement = findings.asked_apart
    asked = {part.style for part in measurement.recall_parts} if measurement else set()
    return tuple(style for style in ALL_STYLES if style in asked or style in PROMPT_STYLES)


def _recall_rows(findings: Findings) -> list[tuple[str, list[Estimate]]]:
    """Return the recommended member's recall: a row per phrasing, all styles and then each one."""
    measurement = findings.asked_apart
    if measurement is None:
        return []
    return [
        (
            phrasing,
            [_recall_part(measurement, phrasing, style) for style in (None, *_styles(findings))],
        )
        for phrasing in _PHRASING_ROWS
    ]


def _recall_part(measurement: Measurement, phrasing: str, style: str | None) -> Estimate:
    return next(
        (
            part.recall
            for part in measurement.recall_parts
            if part.phrasing == phrasing and part.style == style
        ),
        NOT_MEASURED,
    )
