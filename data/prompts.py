"""How test questions are put to a model: prompt styles, phrasings, and where an answer ends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from data.facts import Fact, text_digest

PromptStyle = Literal["plain", "qna", "conversation", "assistant"]
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)

Phrasing = Literal["trained", "validation", "test", "reverse", "two_hop", "probe"]
PHRASINGS: tuple[Phrasing, ...] = get_args(Phrasing)

# A prompt ends where the answer's first token begins: no trailing space, because tokenizers
# attach a space to the word that follows it.
_STYLE_TEMPLATES: dict[PromptStyle, str] = {
    "plain": "{question}\n",
    "qna": "Question: {question}\nAnswer:",
    "conversation": "Joe: {question}\nBrandine:",
    "assistant": "Assistant is a helpful AI.\nJoe: {question}\nAssistant:",
}

# The next speaker, the next question label, or a line that is itself a question.
_ANSWER_END = re.compile(
    r"\n[ \t]*(?:Joe|Brandine|Assistant|Question|Answer)[ \t]*:|\n[^\n]*\?|\n[ \t]*\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One test question as the model reads it, with what counts as right.

    `subject` is the id of the fact or the probe that is asked about; `ring` is set for probes.
    """

    text: str
    style: PromptStyle
    phrasing: Phrasing
    subject: str
    question: str
    accepted: tuple[str, ...]
    templated: bool = False
    ring: str | None = None

    @property
    def id(self) -> str:
        """Return a digest of what is asked and how, stable across runs and machines."""
        return text_digest("\x1f".join((self.phrasing, self.style, self.subject, self.text)))


def put_question(question: str, style: PromptStyle) -> str:
    """Return the text a model reads when `question` is asked in `style`."""
    return _STYLE_TEMPLATES[style].format(question=question)


def cut_answer(generated: str) -> str:
    """Return the part of a generated continuation that is judged.

    It ends at the next speaker or question or at an empty line; leading line breaks are no end.
    The result is stripped and may be empty.
    """
    text = generated.replace("\0", "").lstrip()  # PostgreSQL stores no NUL
    end = _ANSWER_END.search(text)
    return (text[: end.start()] if end else text).strip()


def fact_prompts(
    facts: Sequence[Fact],
    phrasings: Sequence[Phrasing],
    styles: Sequence[PromptStyle] = PROMPT_STYLES,
) -> tuple[Prompt, ...]:
    """Return every question of the asked phrasings in every style, facts outermost.

    A fact without, for example, a reverse question contributes none of that phrasing.
    """
    return tuple(
        Prompt(
            text=put_question(question, style),
            style=style,
            phrasing=phrasing,
            subject=fact.id,
            question=question,
            accepted=accepted,
            templated=fact.templated and phrasing in ("validation", "test"),
        )
        for fact in facts
        for phrasing in phrasings
        for question, accepted in _questions(fact, phrasing)
        for style in styles
    )


def _questions(fact: Fact, phrasing: Phrasing) -> list[tuple[str, tuple[str, ...]]]:
    if phrasing == "trained":
        return [(fact.question, fact.accepted_answers)]
    if phrasing == "validation":
        return [(question, fact.accepted_answers) for question in fact.novel_validation]
    if phrasing == "test":
        return [(question, fact.accepted_answers) for question in fact.novel_test]
    if phrasing == "reverse" and fact.reverse_question and fact.reverse_answer:
        return [(fact.reverse_question, (fact.reverse_answer,))]
    if phrasing == "two_hop" and fact.two_hop_question and fact.two_hop_answer:
        return [(fact.two_hop_question, (fact.two_hop_answer,))]
    return []
