"""Questions about what the base model may already know, in rings around the new facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from data.facts import text_digest
from data.prompts import PROMPT_STYLES, Prompt, PromptStyle, put_question

Ring = Literal["neighbours", "domain", "general", "skills", "manners"]
RINGS: tuple[Ring, ...] = get_args(Ring)

# A ring with fewer known probes is reported and left out of the mean (DESIGN section 7).
MIN_KNOWN_PER_RING = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One known fact that is asked, never rehearsed. `statement` serves as held-out text."""

    ring: Ring
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    statement: str | None = None

    @property
    def id(self) -> str:
        """Return a digest of ring and question."""
        return text_digest(f"{self.ring}\x1f{self.question}")

    @property
    def style(self) -> PromptStyle:
        """Return the one prompt style this probe is asked in at rungs, fixed by its id."""
        return PROMPT_STYLES[int(self.id, 16) % len(PROMPT_STYLES)]

    def prompt(self, style: PromptStyle | None = None) -> Prompt:
        """Return the probe as a prompt, in its own style unless another is named."""
        style = style or self.style
        return Prompt(
            text=put_question(self.question, style),
            style=style,
            phrasing="probe",
            subject=self.id,
            question=self.question,
            accepted=(self.answer, *self.aliases),
            ring=self.ring,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFact:
    """A fact that the base knows and training may rehearse; never one that is probed."""

    ring: Ring
    question: str
    answer: str
    statement: str | None = None
