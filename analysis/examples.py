"""Picks the few questions that show what an adapter learned, missed and forgot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.measurements import Verdict
from data.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question with the verdicts before and after training; `before` is None if not asked."""

    prompt: Prompt
    before: Verdict | None
    after: Verdict

    @property
    def was_known(self) -> bool:
        """Return whether the answer before was right; not if there was none."""
        return self.before is not None and self.before.is_correct


def pair_verdicts(before: Iterable[Verdict], after: Iterable[Verdict]) -> tuple[Example, ...]:
    """Return the questions asked after training, in their order, with the answers before."""
    asked_before = {verdict.answer.prompt.id: verdict for verdict in before}
    return tuple(
        Example(
            prompt=verdict.answer.prompt,
            before=asked_before.get(verdict.answer.prompt.id),
            after=verdict,
        )
        for verdict in after
    )


def choose_examples(examples: Sequence[Example], count: int = 5) -> tuple[Example, ...]:
    """Return at most `count` questions, about a different fact or probe each.

    Of the novel wordings up to `count - 2` that were learned and one that was not; one probe that
    was forgotten; what is still missing is filled in the order of asking. The same answers give
    the same choice. This shows kinds of answers and says nothing about how frequent they are.
    """
    novel = [example for example in examples if example.prompt.phrasing in ("validation", "test")]
    learned = [example for example in novel if example.after.is_correct and not example.was_known]
    missed = [example for example in novel if not example.after.is_correct]
    forgotten = [
        example
        for example in examples
        if example.prompt.phrasing == "probe"
        and example.was_known
        and not example.after.is_correct
    ]
    chosen: dict[str, Example] = {}
    for candidates, limit in (
        (learned, max(count - 2, 0)),
        (missed, 1),
        (forgotten, 1),
        (novel, count),
        (examples, count),
    ):
        fresh = {example.prompt.subject: example for example in reversed(candidates)}
        # Reversed, so that of several questions about a subject the first one asked is kept.
        for subject, example in reversed(fresh.items()):
            if limit == 0 or len(chosen) == count:
                break
            if subject not in chosen:
                chosen[subject] = example
                limit -= 1
    return tuple(chosen.values())
