"""The ledger lists what was lost and gained, with both answers, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from analysis.examples import pair_verdicts
from analysis.formats import format_rows
from analysis.ledger import keep_ledger
from data.measurements import Answer, Label, Verdict
from data.prompts import Prompt

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker


def verdict(number: int, label: Label, *, probe: bool = True) -> Verdict:
    prompt = Prompt(
        text=f"Question {number}?",
        style="plain",
        phrasing="probe" if probe else "validation",
        subject=f"subject {number}",
        question=f"Question {number}?",
        accepted=("yes",),
        ring="general" if probe else None,
    )
    return Verdict(answer=Answer(prompt=prompt, text=label, tokens=2), label=label, judge="m")


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("correct", "incorrect", "lost"),
        ("correct", "not_attempted", "lost"),
        ("incorrect", "correct", "gained"),
        ("not_attempted", "correct", "gained"),
        ("correct", "correct", None),
        ("incorrect", "incorrect", None),
        ("correct", "unjudged", None),
        ("unjudged", "correct", None),
    ],
)
def test_a_changed_verdict_is_lost_or_gained(
    before: Label, after: Label, change: str | None
) -> None:
    pairs = pair_verdicts([verdict(1, before)], [verdict(1, after)])
    ledger = keep_ledger(pairs)
    assert len(ledger.lost) == (change == "lost")
    assert len(ledger.gained) == (change == "gained")
    for entry in (*ledger.lost, *ledger.gained):
        assert entry.before is not None
        assert (entry.before.answer.text, entry.after.answer.text) == (before, after)


def test_new_facts_and_what_was_not_asked_before_are_no_entries() -> None:
    new = [verdict(1, "correct", probe=False), verdict(2, "correct")]
    ledger = keep_ledger(pair_verdicts([verdict(1, "incorrect", probe=False)], new))
    assert (ledger.lost, ledger.gained) == ((), ())


def test_each_mixture_of_formats_is_shown_by_its_best_member(maker: StudyMaker) -> None:
    maker.add((4, 0.5, 0.1), (8, 0.9, 0.05)).add((8, 0.7, 0.02))
    first, second = maker.trials
    maker.trials = [first, replace(second, recipe=replace(second.recipe, formats=("qna",)))]
    assert format_rows(maker.findings()) == (
        ("statement + qna + conversation", "1", "90 % (85–95 %)", "5 % (0–10 %)"),
        ("qna", "1", "70 % (65–75 %)", "2 % (0–7 %)"),
    )
