"""Questions about what the base model may already know, in rings around the new facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from data.facts import text_digest
from data.prompts import ChatFrame, Prompt, PromptStyle, put_question, styles_for

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
        """Return its own style, in which it is asked of a model without a chat template."""
        return self.style_with(None)

    def style_with(self, chat: ChatFrame | None) -> PromptStyle:
        """Return the one style that it is asked in at rungs, fixed by its id."""
        styles = styles_for(chat)
        return styles[int(self.id, 16) % len(styles)]

    def prompt(self, style: PromptStyle | None = None, *, chat: ChatFrame | None = None) -> Prompt:
        """Return the probe as a prompt, in its own style unless another is named."""
        style = style or self.style_with(chat)
        return Prompt(
            text=put_question(self.question, style, chat),
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
