"""Shows what an adapter recalls, and what is lost, once its base is quantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.wording import say_decimal, say_estimate, show_text
from data.measurements import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRow:
    """One adapter on its base with weights of one type, asked the validation wordings greedily.

    `recall` is higher-is-better. `knowledge_loss` is the share of what the base knows as it was
    loaded that the adapter on the quantised base gets wrong; `base_loss` what the quantised base
    gets wrong by itself, without an adapter. Both are lower-is-better.

    Of the new facts that the adapter knows on the base as loaded, `facts_lost` are not known on
    this one, and `facts_gained` the reverse; `p_value` is McNemar's, exact and two-sided.
    """

    weights: str
    bits_per_weight: float
    recall: Estimate
    knowledge_loss: Estimate
    base_loss: Estimate
    facts_lost: int
    facts_gained: int
    p_value: float


def show_quantizations(rows: Sequence[QuantizationRow], *, runtime: str) -> RenderableType:
    """Return a row per type, the base as loaded first; in brackets are 95 % intervals."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    # Where all has no room, words may fall on several lines, figures may not.
    table.add_column("weights")
    table.add_column("bits", justify="right", no_wrap=True)
    for title in ("recall", "knowledge\nloss", "the base's\nown loss"):
        table.add_column(title, no_wrap=True)
    table.add_column("facts\nlost,\ngained", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    for row in rows:
        estimates = (row.recall, row.knowledge_loss, row.base_loss)
        table.add_row(
            Text(show_text(row.weights)),
            f"{row.bits_per_weight:.1f}",
            *map(say_estimate, estimates),
            f"{row.facts_lost}, {row.facts_gained}",
            say_decimal(row.p_value),
        )
    legend = (
        f"Weights quantised as llama-quantize --pure does, answered by {runtime}. Bits: the mean "
        "over all weights. Loss is counted from what the base knows as loaded; beside it what "
        "quantisation alone costs, without an adapter. Facts lost and gained against the first "
        "row, with McNemar's p. In brackets 95 %."
    )
    return Group(table, Text(legend, style="dim"))
