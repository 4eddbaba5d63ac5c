"""Says what the search saw of a recipe beside what fresh seeds made of it."""

from __future__ import annotations

from analysis.findings import Findings
from analysis.wording import say_counted, say_estimate, say_share

REPEAT_TITLES = (
    "recipe of",
    "recall in the search",
    "recall again, search wordings",
    "recall again, kept-aside wordings",
    "loss in the search",
    "loss again",
)

REPEATS_NOTE = (
    "A member of the front was chosen as the best of many, so part of its figure is luck. Its "
    "recipe was trained again with fresh seeds; the intervals carry what facts and seeds leave "
    "open."
)


def repeat_rows(findings: Findings) -> tuple[tuple[str, ...], ...]:
    """Return a row of words under `REPEAT_TITLES` per member that was trained again."""
    rows = []
    for point in findings.members_to_confirm:
        confirmation = findings.confirmation_of(point)
        if confirmation.seeds:
            rows.append(
                (
                    f"trial {point.trial} after {say_counted(point.epoch, 'epoch')}, "
                    f"{say_counted(confirmation.seeds, 'seed')}",
                    say_share(point.recall),
                    say_estimate(confirmation.recall_on_search_wordings),
                    say_estimate(confirmation.recall),
                    say_share(point.knowledge_loss),
                    say_estimate(confirmation.knowledge_loss),
                )
            )
    return tuple(rows)
