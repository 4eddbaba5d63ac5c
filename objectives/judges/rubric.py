"""What judges that ask a model share: which answers to ask about, and the verdicts from labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.answer_words import read_text
from data.judge_prompts import LONGEST_SHOWN
from data.matching import match_answer
from data.measurements import Answer, Label, Verdict


def judge_with_model(
    answers: Sequence[Answer],
    *,
    name: str,
    ask: Callable[[Sequence[Answer]], Sequence[Label]],
) -> tuple[Verdict, ...]:
    """Return one verdict per answer, in their order, signed with `name`.

    An answer without any word is not attempted, unless the very sign is accepted; `ask` gets the
    others. It is not called when there are none.
    """
    labels = [_label_without_model(answer) for answer in answers]
    open_numbers = [number for number, label in enumerate(labels) if label is None]
    if open_numbers:
        asked = ask([answers[number] for number in open_numbers])
        for number, label in zip(open_numbers, asked, strict=True):
            labels[number] = label
    return tuple(
        Verdict(answer=answer, label=label or "unjudged", judge=name)
        for answer, label in zip(answers, labels, strict=True)
    )


def _label_without_model(answer: Answer) -> Label | None:
    if read_text(answer.text[:LONGEST_SHOWN]).words:
        return None
    if read_text(answer.text).words:
        return "unjudged"  # the model would be shown nothing to judge
    return match_answer(answer.prompt.question, answer.text, answer.prompt.accepted)
