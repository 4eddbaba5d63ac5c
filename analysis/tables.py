"""Shows findings in a terminal with rich; model output is shown as inert text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.examples import Example
from analysis.findings import Findings
from analysis.floors import FLOOR_TITLES, floor_rows
from analysis.wording import (
    list_settings,
    say_count,
    say_duration,
    say_estimate,
    say_label,
    say_learning_rate,
    say_phrasing,
    say_sampling,
    show_text,
)
from data.measurements import Measurement, SamplingMeasurement
from storage.records import StudySummary, TrialRecord


def show_front(findings: Findings) -> RenderableType:
    """Return the front as a table, the untouched model first and the recommended member marked."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    # The narrow columns first, so that eighty characters suffice.
    for title in ("trial", "epochs", "recall", "knowledge loss", "rehearsal", "rate"):
        is_text = title in ("recall", "knowledge loss")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    table.add_column("formats", no_wrap=True)
    table.add_column("sampling")
    if findings.base is not None:
        recall = say_estimate(findings.base.recall)
        table.add_row("base", "–", recall, "0 %", *["–"] * 3, _inert(findings.base.sampling.name))
    for point in findings.front:
        table.add_row(
            f"{point.trial}{' *' if point == findings.recommended else ''}",
            str(point.epoch),
            say_estimate(point.measurement.recall),
            say_estimate(point.measurement.knowledge_loss),
            str(point.recipe.rehearsal),
            say_learning_rate(point.recipe.learning_rate),
            "+".join(name[0].upper() for name in point.recipe.formats),
            _inert(point.sampling.name),
            style="bold" if point == findings.recommended else "",
        )
    if not findings.front:
        legend = Text("No point of this study beats the reference.")
    else:
        legend = Text(
            "* recommended; in brackets 95 %; formats: Statement, Plain, Qna, Conversation",
            style="dim",
        )
    return Group(table, legend, *_show_floors(findings))


def _show_floors(findings: Findings) -> list[RenderableType]:
    """Return what the untouched model recalls with facts in its prompt; nothing if not asked."""
    rows = floor_rows(findings)
    if not rows:
        return []
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    answers, tokens, recall = FLOOR_TITLES
    table.add_column(answers, no_wrap=True)
    table.add_column(tokens, justify="right", max_width=len("context tokens"))
    table.add_column(recall)
    for row in rows:
        table.add_row(*map(_inert, row))
    return [Text(), table]


def show_trial(
    trial: TrialRecord, base: Measurement | None, examples: Sequence[Example]
) -> RenderableType:
    """Return one trial's page: its end, settings, curve, and questions with both answers."""
    ending = f"Trial {trial.number}: {trial.state}"
    costs = trial.costs
    parts: list[RenderableType] = [
        Text(f"{ending} ({show_text(trial.reason)})" if trial.reason else ending, style="bold"),
        _show_settings(trial),
        _show_curve(trial, base),
    ]
    if costs is not None:
        parts.append(
            Text(
                f"{say_count(costs.trained_tokens)} tokens trained, "
                f"{say_count(costs.generated_tokens)} generated, {say_duration(costs.seconds)}"
            )
        )
    if examples:
        parts.append(show_examples(examples))
    return Group(
        *(part for pair in zip(parts, [Text()] * len(parts), strict=True) for part in pair)
    )


def show_studies(studies: Sequence[StudySummary]) -> RenderableType:
    """Return the studies of a database with their trials counted by state."""
    if not studies:
        return Text("There is no study in this database.")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("study")
    table.add_column("begun (UTC)")
    for state in ("complete", "pruned", "failed", "running"):
        table.add_column(state, justify="right")
    for study in studies:
        counts = [study.trials.get(state, 0) for state in ("complete", "pruned", "failed")]
        table.add_row(
            _inert(study.name),
            f"{study.created_at:%Y-%m-%d %H:%M}",
            *(say_count(count) for count in (*counts, study.trials.get("running", 0))),
        )
    return table


def _show_settings(trial: TrialRecord) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    settings = (*list_settings(trial.recipe), ("sampling", say_sampling(trial.sampling)))
    for name, value in (*settings, ("seed", str(trial.seed))):
        table.add_row(name, _inert(value))
    return table


def _show_curve(trial: TrialRecord, base: Measurement | None) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("epochs", justify="right")
    table.add_column("trained tokens", justify="right")
    table.add_column("sampling")
    table.add_column("recall")
    table.add_column("knowledge loss")
    if base is not None:
        table.add_row("base", "0", _inert(base.sampling.name), say_estimate(base.recall), "0 %")
    for kept in trial.searched:
        if kept.purpose == "confirm":
            continue  # the same adapter once more
        measurement = kept.measurement
        table.add_row(
            str(measurement.epoch),
            say_count(measurement.trained_tokens),
            _inert(measurement.sampling.name),
            say_estimate(measurement.recall),
            say_estimate(measurement.knowledge_loss),
        )
    return table


def show_samplings(measured: Sequence[SamplingMeasurement]) -> RenderableType:
    """Return a row per sampling, in the order given; in brackets are 95 % intervals."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("sampling", "recall", "knowledge loss", "the base's own loss"):
        table.add_column(title)
    for each in measured:
        estimates = (each.recall, each.knowledge_loss, each.base_loss)
        table.add_row(_inert(each.sampling.name), *map(say_estimate, estimates))
    legend = (
        "Knowledge loss: what the base knows, asked greedily, and the adapter gets wrong under "
        "the sampling; beside it what the base itself gets wrong under it. In brackets 95 %."
    )
    return Group(table, Text(legend, style="dim"))


def show_examples(examples: Sequence[Example]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, row_styles=["", "dim"])
    for title in ("question", "expected", "before", "after", "verdict"):
        table.add_column(title, overflow="fold")
    for example in examples:
        kind = f"{say_phrasing(example.prompt.phrasing)}, {example.prompt.style}"
        table.add_row(
            _inert(f"{example.prompt.question} [{kind}]"),
            _inert(example.prompt.accepted[0] if example.prompt.accepted else "–"),
            _inert(example.before.answer.text if example.before else "not asked"),
            _inert(example.after.answer.text),
            say_label(example.after.label),
        )
    return table


def _inert(text: str) -> Text:
    """Return text that is neither read as markup nor able to send control characters."""
    return Text(show_text(text))
