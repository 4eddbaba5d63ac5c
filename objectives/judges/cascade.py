"""The matcher first, and a model in two wordings for what it does not accept."""

from __future__ import annotations

from collections.abc import Sequence

from data.measurements import Answer, Label, Verdict
from objectives.judges.base import Judge


class Cascade:
    """Judges by a matcher, whose "correct" and "not attempted" are final, and then by others.

    What the matcher calls incorrect is put to every one of `judges`, such as one model in two
    wordings. Where they agree their label holds; where they do not, or one of them cannot tell,
    the answer is unjudged.
    """

    def __init__(self, matcher: Judge, judges: Sequence[Judge]) -> None:
        """Take the judges in the order in which they are asked.

        Raises:
            ValueError: If there are fewer than two, or two have one name.
        """
        names = [judge.name for judge in judges]
        if len(set(names)) < max(2, len(names)):
            raise ValueError(
                f"judges: {names} are not allowed; there must be two or more, each asking in "
                "another way"
            )
        self._matcher = matcher
        self._judges = tuple(judges)

    @property
    def name(self) -> str:
        """Return the names of all parts, for each can change a verdict."""
        return f"{self._matcher.name}, then " + " & ".join(judge.name for judge in self._judges)

    @property
    def unreachable_reason(self) -> str | None:
        """Return why a judge got no reply to something, None if all did or need none."""
        reasons = (judge.unreachable_reason for judge in self._judges)
        return next((reason for reason in reasons if reason is not None), None)

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        """Return one verdict per answer, in their order."""
        labels: list[Label] = [verdict.label for verdict in self._matcher.judge(answers)]
        # The numbers of answers that are still open; one that a judge leaves unjudged stays so,
        # whatever the next would say, and so the next is not asked.
        open_numbers = [
            number for number, label in enumerate(labels) if label in ("incorrect", "unjudged")
        ]
        for place, judge in enumerate(self._judges):
            if not open_numbers:
                break
            verdicts = judge.judge([answers[number] for number in open_numbers])
            for number, verdict in zip(open_numbers, verdicts, strict=True):
                agrees = place == 0 or verdict.label == labels[number]
                labels[number] = verdict.label if agrees else "unjudged"
            open_numbers = [number for number in open_numbers if labels[number] != "unjudged"]
        name = self.name
        return tuple(
            Verdict(answer=answer, label=label, judge=name)
            for answer, label in zip(answers, labels, strict=True)
        )
