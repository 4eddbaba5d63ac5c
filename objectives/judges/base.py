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

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        """Return one verdict per answer, in their order."""
        ...
