"""Shows in a terminal how far a judge agrees with people, and what another judge would change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.points import Point
from analysis.wording import (
    MISSING,
    say_counted,
    say_estimate,
    say_label,
    say_sampling,
    say_share,
    show_text,
)
from data.agreement import Agreement
from data.label_files import LabelledAnswer
from data.measurements import Estimate, Label, Measurement, Verdict
from storage.records import MeasurementRecord

# A point and its recall, corrected by how far its judge agrees with people.
Correction = tuple[Point, Estimate]

_SHOWN_DISAGREEMENTS = 50


class JudgedAgain(Protocol):
    """A recorded measurement and what it would be with another judge."""

    @property
    def kept(self) -> MeasurementRecord: ...

    @property
    def measurement(self) -> Measurement: ...

    @property
    def verdicts(self) -> tuple[Verdict, ...]: ...

    @property
    def changed(self) -> int: ...

    @property
    def reproduces(self) -> bool: ...

    @property
    def judged_probes(self) -> bool: ...


def show_agreement(judge: str, agreement: Agreement) -> Table:
    """Return a judge's labels against people's, and the figures that follow from them."""
    table = _table("judge", show_text(judge), header=False)
    unjudged = f", {agreement.unjudged} unjudged" if agreement.unjudged else ""
    table.add_row("labelled answers", f"{agreement.judged} judged{unjudged}")
    table.add_row(
        "people say right",
        f"{agreement.true_positives} accepted, {agreement.false_negatives} refused",
    )
    table.add_row(
        "people say wrong",
        f"{agreement.true_negatives} refused, {agreement.false_positives} accepted",
    )
    table.add_row("sensitivity", say_estimate(agreement.sensitivity))
    table.add_row("specificity", say_estimate(agreement.specificity))
    table.add_row("kappa", _say_signed(agreement.kappa, "{:.3f}"))
    p_value = agreement.bias_p_value
    said = (
        ""
        if p_value is None
        else f"; McNemar's p {'< 0.001' if p_value < 0.001 else f'{p_value:.3f}'}"
    )
    table.add_row("bias", f"{_say_signed(agreement.bias, '{:+.3f}')}{said}")
    return table


def show_disagreements(disagreements: Sequence[tuple[LabelledAnswer, Label]]) -> RenderableType:
    """Return the first answers on which a judge and people differ, with both labels."""
    table = Table(box=None, header_style="bold", pad_edge=False, row_styles=["", "dim"])
    for title in ("question", "expected", "answer", "people", "judge"):
        table.add_column(title, overflow="fold")
    for each, label in disagreements[:_SHOWN_DISAGREEMENTS]:
        table.add_row(
            Text(show_text(each.question)),
            Text(show_text(each.accepted[0])),
            Text(show_text(each.text)),
            say_label(each.label),
            say_label(label),
        )
    left = len(disagreements) - _SHOWN_DISAGREEMENTS
    if left <= 0:
        return table
    return Group(table, Text(f"and {left} more; --json lists all", style="dim"))


def show_corrections(corrections: Sequence[Correction]) -> Table:
    """Return the recall of points as judged and corrected, in brackets 95 % intervals."""
    table = _table("trial", "epochs", "recall", "corrected")
    for point, corrected in corrections:
        recall = point.measurement.recall
        table.add_row(
            str(point.trial), str(point.epoch), say_estimate(recall), say_estimate(corrected)
        )
    return table


def show_rejudged(judged: Sequence[JudgedAgain], judge: str) -> RenderableType:
    """Return recall and knowledge loss as recorded and by another judge, a row per measurement."""
    table = _table("trial", "epochs", "sampling", "recall", "now", "loss", "now", "changed")
    for each in judged:
        kept, was, now = each.kept, each.kept.measurement, each.measurement
        named = kept.purpose if kept.trial is None else str(kept.trial)
        table.add_row(
            f"{named} {kept.purpose}" if kept.purpose in ("confirm", "repeat") else named,
            str(was.epoch),
            Text(say_sampling(was.sampling)),
            say_share(was.recall.value),
            say_share(now.recall.value),
            say_share(was.knowledge_loss.value),
            say_share(now.knowledge_loss.value) if each.judged_probes else "as before",
            f"{each.changed} of {len(each.verdicts)}",
        )
    changed = sum(each.changed for each in judged)
    legend = f"now: by {show_text(judge)}; {changed} verdicts changed."
    odd = sum(not each.reproduces for each in judged)
    if odd:
        legend += (
            f" {say_counted(odd, 'measurement')} cannot be reproduced from what is stored: the "
            "program scored otherwise then."
        )
    return Group(table, Text(legend, style="dim"))


def _table(*titles: str, header: bool = True) -> Table:
    table = Table(
        box=None, show_header=header, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0)
    )
    if header:
        for title in titles:
            table.add_column(title)
    else:
        table.add_row(*titles)
    return table


def _say_signed(estimate: Estimate, form: str) -> str:
    """Return a figure that may be below 0 with its interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return MISSING
    value, low, high = map(form.format, (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"
