"""Measures what the adapters on a front take, once its search has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.findings import Findings
from analysis.points import Point
from data.measurements import AdapterCost
from data.prompts import fact_prompts
from objectives.answers.speed import measure_answer_speed
from objectives.bank.adapter_size import adapter_size
from objectives.learn import SEARCHED, Learning
from objectives.paces import choose_evenly
from storage.recorder import Recorder

# Of a long front so many members; the others are much alike.
_MOST_MEMBERS = 8
# A batch that takes a large model a few seconds.
_PROMPTS = 32


def measure_adapter_costs(
    recorder: Recorder,
    learning: Learning,
    findings: Findings,
    should_stop: Callable[[], bool],
) -> None:
    """Measure and record what members of the front take that are kept and not measured yet.

    Raises:
        AskingStopped: If `should_stop` says so; what was measured before is recorded.
    """
    base = learning.bank.base
    prompts = choose_evenly(fact_prompts(learning.facts, SEARCHED, chat=base.chat), _PROMPTS)
    for point in unmeasured(findings):
        assert point.adapter is not None
        folder = Path(point.adapter)
        learning.bank.load(0, folder)
        try:
            speed = measure_answer_speed(
                base, prompts, slot=0, router=learning.bank, should_stop=should_stop
            )
        finally:
            learning.bank.release(0)
        size = adapter_size(folder)
        recorder.record_adapter_costs(
            [
                AdapterCost(
                    trial=point.trial,
                    epoch=point.epoch,
                    parameters=size.parameters,
                    file_bytes=size.file_bytes,
                    prompts=len(prompts),
                    tokens_per_second=speed.with_adapter,
                    base_tokens_per_second=speed.without_adapter,
                )
            ]
        )


def unmeasured(findings: Findings) -> Sequence[Point]:
    """Return the members whose adapters are there and were not measured, the recommended first."""
    members = {
        (point.trial, point.epoch): point
        for point in (*findings.members_to_confirm, *findings.front)
        if point.adapter is not None and Path(point.adapter).is_dir()
    }
    done = {(cost.trial, cost.epoch) for cost in findings.adapter_costs}
    chosen = list(members)[:_MOST_MEMBERS]
    return [members[key] for key in chosen if key not in done]
