"""Finds out how a chat template puts a question, and with what it ends an answer."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer

from data.prompts import ChatFrame
from objectives.models.base import ModelError

NO_CHAT = "none"  # a study's word for asking without a chat template

# Words that no template contains; some templates strip the spaces around a message.
_QUESTION, _ANSWER = "QUESTION-5b1f", "ANSWER-c07e"

_REMEDY = f'give another in the study file, or chat_template = "{NO_CHAT}" to ask without it'

# Templates that name today's date would make another prompt every day. This is the date that
# Llama's use where they cannot know better. The last tag keeps a line break that a template
# begins with.
_FIXED_DATE = '{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}{{- "" }}'


def read_template(template: str) -> str:
    """Return a chat template that is given as its text or as the path of a file with it.

    Raises:
        ModelError: If it is neither, or the file cannot be read.
    """
    if "{{" in template or "{%" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ModelError(
            f"chat_template: {template!r} cannot be read ({reason}); name a file with a Jinja "
            f"template, write the template itself, or “{NO_CHAT}” to ask without one"
        ) from error


def find_chat(
    tokenizer: Tokenizer, template: str | None = None
) -> tuple[ChatFrame, tuple[int, ...]] | None:
    """Return how questions are put in a chat, and the tokens with which an answer ends.

    A single message of the user is put, without system prompt, tools or thinking, with all that
    the model reads before its answer. An answer ends with the added token that the template writes
    right after it; where there is none, it ends where the template opens the user's next turn.

    Args:
        tokenizer: The model's.
        template: A Jinja template to be used in place of the tokenizer's own.

    Returns:
        None if the tokenizer has no template and none is given.

    Raises:
        ModelError: If the template is broken, or changes or repeats the question.
    """
    template = template or _own_template(tokenizer)
    if template is None:
        return None
    question = {"role": "user", "content": _QUESTION}
    answer = {"role": "assistant", "content": _ANSWER}
    asked = _render(tokenizer, template, [question], is_to_answer=True)
    before, *after = asked.split(_QUESTION)
    if len(after) != 1 or before == after[0] == "":
        raise ModelError(
            f"chat_template: it must write the question once, with something around it, and "
            f"writes {asked!r}; {_REMEDY}"
        )
    answered = _render(tokenizer, template, [question, answer], is_to_answer=False)
    ends = _added_token_at(tokenizer, answered.partition(_ANSWER)[2].lstrip())
    next_turn = ""
    if not ends:
        going_on = _render(tokenizer, template, [question, answer, question], is_to_answer=True)
        next_turn = going_on.partition(_ANSWER)[2].partition(_QUESTION)[0].strip()
    return ChatFrame(before=before, after=_without_thinking(after[0]), end=next_turn), ends


def _without_thinking(after: str) -> str:
    """Return what follows a question with the thinking ended that it opens, if it opens any.

    So an answer stands within the few tokens that are generated, as it does by a template that
    knows of `enable_thinking`.
    """
    opening = after.rstrip()
    return f"{opening}\n\n</think>\n\n" if opening.endswith("<think>") else after


def _own_template(tokenizer: Tokenizer) -> str | None:
    """Return a tokenizer's template; of several, as some have for tools, the one for a chat."""
    own = tokenizer.chat_template
    return own.get("default") if isinstance(own, dict) else own


def _render(
    tokenizer: Tokenizer, template: str, messages: list[dict[str, str]], *, is_to_answer: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=_FIXED_DATE + template,
                tokenize=False,
                add_generation_prompt=is_to_answer,
                enable_thinking=False,
            )
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"chat_template: it cannot be used: {reason}; {_REMEDY}") from error


def _added_token_at(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Return the added token that a text begins with, as a tuple; an empty one if there is none.

    Only those count, for ordinary tokens may be joined with what stands beside them.
    """
    added = tokenizer.get_added_vocab()
    found = [token for token in added if token and text.startswith(token)]
    return (int(added[max(found, key=len)]),) if found else ()
