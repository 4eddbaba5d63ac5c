"""What every judge is: something with a name that turns answers into verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from data.measurements import Answer, Verdict


class JudgeError(RuntimeError):
    """A judge cannot be used as it is set up; the message names the setting and what to do."""


class JudgeUnreachable(RuntimeError):
    """A judge gives no reply for now; what it was to judge can be judged later."""


class Judge(Protocol):
    """Decides about answers one by one; an answer's text is untrusted."""

    @property
    def name(self) -> str:
        """Return what verdicts are signed with; it changes whenever verdicts could."""
        ...

    @property
    def unreachable_reason(self) -> str | None:
        """Return why the judge got no reply to something, None if it did or needs none."""
        ...

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        """Return one verdict per answer, in their order."""
        ...


def judge_answers(judge: Judge, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
    """Return one verdict per answer, in their order, of a judge that replied.

    Raises:
        JudgeUnreachable: If answers are unjudged because the judge gave no reply. They would be
            left out of every figure, so that nothing is scored without them.
    """
    verdicts = judge.judge(answers)
    reason = judge.unreachable_reason
    if reason is not None and any(verdict.label == "unjudged" for verdict in verdicts):
        raise JudgeUnreachable(
            f"judge: {judge.name} gives no reply ({reason}); nothing was scored without it. Run "
            "the same command again once it is there"
        )
    return verdicts
