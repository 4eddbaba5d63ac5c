"""Says what the untouched model recalls with facts in its prompt, beside the adapter."""

from __future__ import annotations

from analysis.findings import Findings
from analysis.wording import say_estimate, say_mean_tokens, show_text
from data.measurements import Floor, FloorName

# Recalls stand last: where one was not measured, the reason needs room.
FLOOR_TITLES = ("what answers", "context tokens per answer", "recall")

FLOORS_NOTE = (
    "The untouched model can also be told the facts before every question. Context tokens are "
    "what it then reads in addition, as the mean over questions; an adapter needs none. The best "
    "match is found by BM25 among the facts' statements and trained questions."
)

_NAMES: dict[FloorName, str] = {
    "base": "untouched model",
    "all facts": "all facts in the prompt",
    "best fact": "the best-matching fact in the prompt",
}


def floor_rows(findings: Findings) -> tuple[tuple[str, str, str], ...]:
    """Return a row of words per floor under `FLOOR_TITLES`, the recommended member's last.

    Without floors there are no rows. The text is safe to be shown once it is escaped.
    """
    rows = [_row(floor) for floor in findings.record.floors]
    yardstick, best = findings.yardstick, findings.recommended
    if rows and yardstick.seeds:
        recall = say_estimate(yardstick.recall_on_search_wordings)
        rows.append(("adapter by the web UI's settings of June 2023", "0", recall))
    if rows and best is not None:
        rows.append((f"adapter of trial {best.trial}", "0", say_estimate(best.measurement.recall)))
    return tuple(rows)


def _row(floor: Floor) -> tuple[str, str, str]:
    recall = say_estimate(floor.recall)
    if floor.reason is not None:
        recall = f"{recall}: {show_text(floor.reason)}"
    return _NAMES[floor.name], say_mean_tokens(floor.context_tokens), recall
