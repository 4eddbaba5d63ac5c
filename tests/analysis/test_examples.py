"""Which questions are shown as examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from analysis.examples import Example, choose_examples, pair_verdicts
from data.measurements import Answer, Label, Verdict
from data.prompts import Phrasing, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence


def verdict(subject: str, label: Label, *, phrasing: Phrasing = "validation") -> Verdict:
    prompt = Prompt(
        text=f"{subject}?\n",
        style="plain",
        phrasing=phrasing,
        subject=subject,
        question=f"{subject}?",
        accepted=("yes",),
    )
    return Verdict(answer=Answer(prompt=prompt, text="…", tokens=1), label=label, judge="matcher")


def subjects(examples: Sequence[Example]) -> list[str]:
    return [example.prompt.subject for example in examples]


def test_questions_are_paired_with_their_answers_before() -> None:
    before, after = verdict("a", "incorrect"), verdict("a", "correct")
    paired = pair_verdicts([before], [after, verdict("b", "correct")])

    assert (paired[0].before, paired[0].after) == (before, after)
    assert paired[1].before is None


def test_learned_questions_come_first_then_one_missed_and_one_forgotten() -> None:
    asked = "abcde"
    before = [verdict(name, "incorrect") for name in asked]
    after = [verdict(name, "correct") for name in "abcd"] + [verdict("e", "incorrect")]
    before += [
        verdict("kept", "correct", phrasing="probe"),
        verdict("lost", "correct", phrasing="probe"),
    ]
    after += [
        verdict("kept", "correct", phrasing="probe"),
        verdict("lost", "incorrect", phrasing="probe"),
    ]

    assert subjects(choose_examples(pair_verdicts(before, after))) == ["a", "b", "c", "e", "lost"]


def test_a_subject_is_shown_once_and_gaps_are_filled_in_order() -> None:
    after = [verdict(name, "correct") for name in ("a", "a", "b")]
    after.append(verdict("reverse", "correct", phrasing="reverse"))

    assert subjects(choose_examples(pair_verdicts([], after))) == ["a", "b", "reverse"]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_never_more_than_asked_for(count: int) -> None:
    after = [verdict(name, "incorrect" if name == "b" else "correct") for name in "abcdef"]

    assert len(choose_examples(pair_verdicts([], after), count)) == count


def test_no_answers_give_no_examples() -> None:
    assert choose_examples(()) == ()
