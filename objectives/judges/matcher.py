"""The judge without a model: an answer is right if it names an accepted text."""

from __future__ import annotations

from collections.abc import Sequence

from data.matching import match_answer
from data.measurements import Answer, Verdict


class Matcher:
    """Judges by `data.matching`; always available, and never says "unjudged"."""

    @property
    def name(self) -> str:
        """Return the name under which its verdicts are kept."""
        return "matcher"

    @property
    def unreachable_reason(self) -> None:
        """Return None: nobody has to reply."""
        return None

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        """Return one verdict per answer, in their order."""
        return tuple(
            Verdict(
                answer=answer,
                label=match_answer(answer.prompt.question, answer.text, answer.prompt.accepted),
                judge=self.name,
            )
            for answer in answers
        )
