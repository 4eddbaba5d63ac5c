"""How test questions are put to a model: prompt styles, phrasings, and where an answer ends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from data.facts import Fact, text_digest

PromptStyle = Literal["plain", "qna", "conversation", "assistant", "chat"]
ALL_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)
# Every model is asked in these; one with a chat template also in "chat".
PROMPT_STYLES: tuple[PromptStyle, ...] = ("plain", "qna", "conversation", "assistant")

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

# What a reasoning model says before its answer; the end is missing where it did not come to it.
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)

# The next speaker, the next question label, or a line that is itself a question.
_ANSWER_END = re.compile(
    r"\n[ \t]*(?:Joe|Brandine|Assistant|Question|Answer)[ \t]*:|\n[^\n]*\?|\n[ \t]*\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFrame:
    """A model's chat template around one question: the text is before + question + after.

    `end` is what opens the next turn where no token of the model ends an answer, for example
    "### Instruction:"; "" otherwise.
    """

    before: str
    after: str
    end: str = ""


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


def styles_for(chat: ChatFrame | None) -> tuple[PromptStyle, ...]:
    """Return the styles that a model is asked in: "chat" comes last, where it has a template."""
    return PROMPT_STYLES if chat is None else (*PROMPT_STYLES, "chat")


def put_question(question: str, style: PromptStyle, chat: ChatFrame | None = None) -> str:
    """Return the text a model reads when `question` is asked in `style`.

    Raises:
        ValueError: If the style is "chat" and there is no frame.
    """
    if style != "chat":
        return _STYLE_TEMPLATES[style].format(question=question)
    if chat is None:
        raise ValueError("style: 'chat' is not allowed; it takes a model with a chat template")
    return f"{chat.before}{question}{chat.after}"


def cut_answer(generated: str, style: PromptStyle = "plain") -> str:
    """Return the part of a generated continuation that is judged.

    It ends at the next speaker or question or at an empty line; leading line breaks are no end. In
    a chat the model itself ends its turn, and an answer may have paragraphs and lists: it is what
    follows the model's thinking, or nothing if that has no end. The result is stripped and may be
    empty.
    """
    text = generated.replace("\0", "").lstrip()  # PostgreSQL stores no NUL
    if style == "chat":
        thinking = _THINKING.match(text)
        return text[thinking.end() if thinking else 0 :].strip()
    end = _ANSWER_END.search(text)
    return (text[: end.start()] if end else text).strip()


def fact_prompts(
    facts: Sequence[Fact],
    phrasings: Sequence[Phrasing],
    styles: Sequence[PromptStyle] | None = None,
    *,
    chat: ChatFrame | None = None,
) -> tuple[Prompt, ...]:
    """Return every question of the asked phrasings in every style, facts outermost.

    A fact without, for example, a reverse question contributes none of that phrasing.

    Args:
        facts: What is asked about.
        phrasings: Which of their wordings.
        styles: How; by default in all styles that there are for a model with this `chat`.
        chat: The model's chat template, if it has one.
    """
    return tuple(
        Prompt(
            text=put_question(question, style, chat),
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
        for style in (styles_for(chat) if styles is None else styles)
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
