"""What every judge is: something with a name that turns answers into verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from data.measurements import Answer, Verdict


class Judge(Protocol):
    """Decides about answers one by one; an answer's text is untrusted."""

    @property
    def name(self) -> str:
        """Return what verdicts are signed with; it changes whenever verdicts could."""
        ...

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        """Return one verdict per answer, in their order."""
        ...
