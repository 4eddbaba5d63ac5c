"""Turns texts into the token ids that a model reads, and refuses what it cannot read."""

from __future__ import annotations

from collections.abc import Iterable

from data.prompts import Prompt
from objectives.models.base import BaseModel, ModelError


def encode_prompts(
    base: BaseModel, asked: Iterable[tuple[Prompt, int]]
) -> dict[Prompt, tuple[int, ...]]:
    """Return the token ids of every prompt, as it is read in its style.

    Args:
        base: The model.
        asked: Prompts, each with the longest answer it may get, in tokens.

    Raises:
        ModelError: If a prompt has no tokens, or with its answer exceeds the model's context.
    """
    encoded: dict[Prompt, tuple[int, ...]] = {}
    for prompt, answer_tokens in asked:
        if prompt not in encoded:
            encoded[prompt] = tuple(base.encode_prompt(prompt.text, prompt.style))
        tokens = len(encoded[prompt])
        if tokens == 0:
            raise ModelError(f"prompt: {prompt.text!r} has no tokens; ask something")
        if tokens + answer_tokens > base.context_tokens:
            raise ModelError(
                f"prompt: {prompt.text!r} has {tokens} tokens and its answer may have "
                f"{answer_tokens}, together more than the {base.context_tokens} tokens that "
                f"{base.name} can read; shorten the question or lower max_new_tokens"
            )
    return encoded


def encode_document(base: BaseModel, text: str) -> list[int]:
    """Return the token ids of a text that is read as a whole, with its EOS.

    Raises:
        ModelError: If the text exceeds the model's context.
    """
    token_ids = base.encode_document(text)
    if len(token_ids) > base.context_tokens:
        raise ModelError(
            f"text: {text!r} has {len(token_ids)} tokens, more than the {base.context_tokens} "
            f"tokens that {base.name} can read; shorten it"
        )
    return token_ids
