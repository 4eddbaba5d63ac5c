"""Writes the notes that the dashboard shows: one about the study, one for each chosen trial."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence

from analysis.examples import Example, choose_examples, pair_verdicts
from analysis.findings import Findings
from analysis.points import Point
from analysis.wording import (
    say_counted,
    say_estimate,
    say_label,
    say_phrasing,
    say_sampling,
)
from data.measurements import Verdict
from storage.records import TrialRecord
from study.dashboard.escaping import escape_markdown, quote_lines
from study.place import DATABASE_FILE, Place

MOST_NOTES = 30
# Below 2,045, beyond which the dashboard stores a note in several rows.
LONGEST_NOTE = 2_000
_EXAMPLES = 4
_POINTS = 4
_MEMBERS = 8
_LONGEST_TEXTS = (240, 120, 60)  # tried one after the other until a note fits


def write_study_note(findings: Findings, place: Place) -> str:
    """Return what the study found, in a few sentences, and how to go on, as Markdown."""
    conclusion = findings.conclusion
    parts = [f"**{escape_markdown(conclusion.sentence)}**"]
    parts += [
        escape_markdown(sentence)
        for sentence in (findings.kept_aside_sentence, conclusion.rehearsal)
        if sentence
    ]
    if findings.front:
        members = [
            f"- trial {point.trial}, {_describe_point(findings, point)}"
            for point in findings.front[:_MEMBERS]
        ]
        more = len(findings.front) - len(members)
        if more:
            members.append(f"- and {more} more")
        parts.append("The front:\n\n" + "\n".join(members))
    parts.append("How to go on:\n\n" + "\n".join(_next_steps(findings, place)))
    while sum(len(part) + 2 for part in parts) > LONGEST_NOTE and len(parts) > 2:
        del parts[-2]  # the sentence and what to do are kept
    return _cut("\n\n".join(parts))


def write_trial_notes(
    findings: Findings, verdicts_of: Callable[[int], Sequence[Verdict]]
) -> Mapping[int, str]:
    """Return notes as Markdown by the trial's number: of the front, then of those confirmed.

    At most `MOST_NOTES`, none longer than `LONGEST_NOTE`. `verdicts_of` returns a measurement's
    verdicts by its id.
    """
    base = findings.record.base
    before = verdicts_of(base.id) if base else ()
    points: dict[int, list[Point]] = {}
    for point in (*findings.front, *findings.members_to_confirm):
        of_trial = points.setdefault(point.trial, [])
        if point not in of_trial:
            of_trial.append(point)
    trials = {trial.number: trial for trial in findings.record.trials}
    notes = {}
    for number in [*points][:MOST_NOTES]:
        shown = next(
            (point for point in points[number] if point == findings.recommended),
            points[number][0],
        )
        examples = choose_examples(
            pair_verdicts(before, verdicts_of(shown.measurement_id)), count=_EXAMPLES
        )
        notes[number] = _write_trial_note(
            findings, trials[number], points[number], shown, examples
        )
    return notes


def _write_trial_note(
    findings: Findings,
    trial: TrialRecord,
    points: Sequence[Point],
    shown: Point,
    examples: Sequence[Example],
) -> str:
    head = [f"- {_describe_point(findings, point)}" for point in points[:_POINTS]]
    if len(points) > len(head):
        head.append(f"- and {len(points) - len(head)} more points")
    parts = ["\n".join(head), _say_end(trial)]
    asked = f"Questions before and after {say_counted(shown.epoch, 'epoch')} of training:"
    for longest in _LONGEST_TEXTS:
        blocks = [quote_lines(_rows(example), longest=longest) for example in examples]
        note = "\n\n".join((*parts, asked, *blocks)) if blocks else "\n\n".join(parts)
        if len(note) <= LONGEST_NOTE:
            return note
    while blocks:
        blocks.pop()
        note = "\n\n".join((*parts, asked, *blocks)) if blocks else "\n\n".join(parts)
        if len(note) <= LONGEST_NOTE:
            return note
    return _cut(note)


def _describe_point(findings: Findings, point: Point) -> str:
    """Return a point's epochs, objectives and standing as Markdown."""
    measurement = point.measurement
    said = (
        f"after {say_counted(point.epoch, 'epoch')}: recall {say_estimate(measurement.recall)}, "
        f"knowledge loss {say_estimate(measurement.knowledge_loss)}, asked with "
        f"{say_sampling(point.sampling)}"
    )
    standing = []
    if point == findings.recommended:
        standing.append("recommended")
    elif point in findings.front:
        standing.append("on the front")
    confirmation = findings.confirmation_of(point)
    if confirmation.seeds:
        standing.append(
            f"trained again with {say_counted(confirmation.seeds, 'fresh seed')}: "
            f"recall {say_estimate(confirmation.recall)}, "
            f"knowledge loss {say_estimate(confirmation.knowledge_loss)}"
        )
    return escape_markdown("; ".join((said, *standing)))


def _say_end(trial: TrialRecord) -> str:
    """Return how a trial ended, or that it runs, as Markdown."""
    reached = (
        f" after {say_counted(trial.costs.last_epoch, 'epoch')}" if trial.costs is not None else ""
    )
    reason = f": {trial.reason}" if trial.reason else ""
    ended = {
        "running": "The trial still runs.",
        "complete": f"The trial ran to its end{reached}.",
        "pruned": f"The trial was pruned{reached}{reason}.",
        "failed": f"The trial failed{reached}{reason}.",
    }
    return escape_markdown(ended[trial.state])


def _rows(example: Example) -> list[tuple[str, str]]:
    prompt = example.prompt
    kind = f"{say_phrasing(prompt.phrasing)}, {prompt.style}"
    before = "not asked" if example.before is None else _say_verdict(example.before)
    return [
        ("question", f"{prompt.question} [{kind}]"),
        ("expected", prompt.accepted[0] if prompt.accepted else "–"),
        ("before", before),
        ("after", _say_verdict(example.after)),
    ]


def _say_verdict(verdict: Verdict) -> str:
    return f"[{say_label(verdict.label)}] {verdict.answer.text}"


def _next_steps(findings: Findings, place: Place) -> list[str]:
    where = f"--name {shlex.quote(place.name)} --out {shlex.quote(str(place.folder.parent))}"
    if place.storage_url != f"sqlite:///{place.folder.parent / DATABASE_FILE}":
        where += " --storage …"  # it may hold a password, and everyone reads the note
    steps = [f"- the whole report, written again: {_code(f'remember report {where}')}"]
    chosen = findings.recommended
    if chosen is not None and chosen.adapter is not None:
        ask = f"remember ask {chosen.trial} 'Who …?' {where}"
        export = f"remember export {chosen.trial} --to adapter {where}"
        steps += [
            f"- ask the recommended adapter something: {_code(ask)}",
            f"- copy it to a folder: {_code(export)}",
        ]
    steps.append("- search on: the command that began the study, with a larger `--trials`")
    return steps


def _code(command: str) -> str:
    """Return a command as code; a backtick would end that, and names need none."""
    return f"`{command.replace('`', '')}`"


def _cut(note: str) -> str:
    return note if len(note) <= LONGEST_NOTE else f"{note[: LONGEST_NOTE - 1]}…"
