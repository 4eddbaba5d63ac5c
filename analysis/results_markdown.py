"""Writes RESULTS.md: the answer, the front, the rings and the costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from analysis.costs import add_costs
from analysis.examples import choose_examples, pair_verdicts
from analysis.files import write_whole
from analysis.findings import Findings
from analysis.floors import FLOOR_TITLES, FLOORS_NOTE, floor_rows
from analysis.judging import say_judge
from analysis.points import RECOMMENDATION_RULE
from analysis.repeats import REPEAT_TITLES, REPEATS_NOTE, repeat_rows
from analysis.resources import (
    RESOURCE_TITLES,
    RESOURCES_NOTE,
    resource_rows,
    say_device_uses,
)
from analysis.wording import (
    say_count,
    say_counted,
    say_duration,
    say_estimate,
    say_folder,
    say_formats,
    say_label,
    say_learning_rate,
    say_left_out,
    say_sampling,
    show_text,
)
from data.measurements import Verdict


def write_results(
    findings: Findings,
    *,
    verdicts_of: Callable[[int], Sequence[Verdict]],
    versions: Mapping[str, str],
    out: Path,
) -> None:
    """Write RESULTS.md to `out`, whole or not at all."""
    write_whole(out, render_results(findings, verdicts_of=verdicts_of, versions=versions))


def render_results(
    findings: Findings,
    *,
    verdicts_of: Callable[[int], Sequence[Verdict]],
    versions: Mapping[str, str],
) -> str:
    """Return the page as GitHub-flavoured Markdown, with every text from outside escaped."""
    sections = [
        f"# {escape_markdown(findings.record.name)}",
        escape_markdown(findings.conclusion.sentence),
        escape_markdown(findings.kept_aside_sentence),
        escape_markdown(findings.conclusion.rehearsal),
        escape_markdown(findings.conclusion.thresholds),
        escape_markdown(f"Judge: {say_judge(findings)}"),
        "## The front",
        _front(findings),
        *_repeats(findings),
        *_floors(findings),
        "## What was forgotten",
        _rings(findings),
        "## Questions before and after",
        _examples(findings, verdicts_of),
        "## Costs",
        _costs(findings),
        *_resources(findings),
        "## How it was run",
        _provenance(findings, versions),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def escape_markdown(text: str) -> str:
    """Return text that Markdown and HTML show as it is, on one line, also inside a table cell."""
    shown = re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", show_text(text))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; texts from outside must have been escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _front(findings: Findings) -> str:
    base = findings.base
    rows = (
        [["base", "–", say_estimate(base.recall), "0 %", *["–"] * 4, "greedy", "–"]]
        if base
        else []
    )
    rows += [
        [
            f"**{point.trial}**" if point == findings.recommended else str(point.trial),
            str(point.epoch),
            say_estimate(point.measurement.recall),
            say_estimate(point.measurement.knowledge_loss),
            say_formats(point.recipe),
            str(point.recipe.rank),
            say_learning_rate(point.recipe.learning_rate),
            str(point.recipe.rehearsal),
            escape_markdown(say_sampling(point.sampling)),
            escape_markdown(say_folder(point.adapter)) if point.adapter else "not kept",
        ]
        for point in findings.front
    ]
    header = ["trial", "epochs", "recall", "knowledge loss", "formats", "rank", "learning rate"]
    table = markdown_table([*header, "rehearsal", "sampling", "adapter"], rows)
    note = (
        f"In brackets: 95 % intervals. {RECOMMENDATION_RULE}"
        if findings.front
        else "No point of this study beats the reference "
        f"(recall above {findings.reference.recall:.2f}, "
        f"knowledge loss below {findings.reference.knowledge_loss:.2f})."
    )
    return f"{table}\n\n{note}" if rows else note


def _repeats(findings: Findings) -> list[str]:
    rows = repeat_rows(findings)
    if not rows:
        return []
    table = markdown_table(REPEAT_TITLES, [list(row) for row in rows])
    return ["## Trained again with fresh seeds", f"{table}\n\n{REPEATS_NOTE}"]


def _floors(findings: Findings) -> list[str]:
    rows = floor_rows(findings)
    if not rows:
        return []
    table = markdown_table(FLOOR_TITLES, [[escape_markdown(cell) for cell in row] for row in rows])
    return ["## The facts in the prompt instead", f"{table}\n\n{FLOORS_NOTE}"]


def _rings(findings: Findings) -> str:
    if findings.recommended is None or not findings.recommended.measurement.rings:
        return "not measured"
    return markdown_table(
        ["ring", "asked", "known before", "lost", "gained", "loss"],
        [
            [
                escape_markdown(ring.ring),
                str(ring.asked),
                str(ring.known),
                str(ring.lost),
                str(ring.gained),
                f"{say_estimate(ring.loss)}{say_left_out(ring)}",
            ]
            for ring in findings.recommended.measurement.rings
        ],
    )


def _examples(findings: Findings, verdicts_of: Callable[[int], Sequence[Verdict]]) -> str:
    base = findings.record.base
    if findings.recommended is None or base is None:
        return "not measured"
    examples = choose_examples(
        pair_verdicts(verdicts_of(base.id), verdicts_of(findings.recommended.measurement_id))
    )
    if not examples:
        return "not measured"
    return markdown_table(
        [
            "question",
            "expected",
            "untouched model",
            f"trial {findings.recommended.trial}",
            "verdict",
        ],
        [
            [
                escape_markdown(example.prompt.question),
                escape_markdown(example.prompt.accepted[0] if example.prompt.accepted else "–"),
                escape_markdown(example.before.answer.text if example.before else "not asked"),
                escape_markdown(example.after.answer.text),
                say_label(example.after.label),
            ]
            for example in examples
        ],
    )


def _costs(findings: Findings) -> str:
    costs = add_costs(findings.record).total
    return markdown_table(
        ["ended trials", "trained tokens", "generated tokens", "time of all trials together"],
        [
            [
                str(costs.trials),
                say_count(costs.trained_tokens),
                say_count(costs.generated_tokens),
                say_duration(costs.seconds),
            ]
        ],
    )


def _resources(findings: Findings) -> list[str]:
    rows, uses = resource_rows(findings), say_device_uses(findings)
    if not rows and not uses:
        return []
    parts = [f"{markdown_table(RESOURCE_TITLES, rows)}\n\n{RESOURCES_NOTE}"] if rows else []
    return ["## What an adapter takes", *parts, *map(escape_markdown, uses)]


def _provenance(findings: Findings, versions: Mapping[str, str]) -> str:
    record = findings.record
    new, known = len(findings.subject.new), len(findings.subject.known)
    lines = [
        f"model {findings.subject.model}; {say_counted(new, 'new fact')}, "
        f"{known} set aside as known",
        f"study seed {record.seed}, {say_counted(record.slots, 'slot')}, begun "
        f"{record.created_at:%Y-%m-%d %H:%M} UTC",
        *(f"{name}: {value}" for name, value in sorted(record.fingerprint.items())),
        *(f"{name} {version}" for name, version in versions.items()),
    ]
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)
