"""Puts facts before a question: all of them, or the one that BM25 finds for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import bm25s

from data.facts import Fact
from data.formats import write_document
from data.prompts import ChatFrame, Prompt, put_question


def write_context(facts: Sequence[Fact]) -> str:
    """Return facts as statements, each on one line that ends with a line break; "" for none."""
    return "".join(f"{_write_line(fact)}\n" for fact in facts)


def put_before(context: str, prompt: Prompt, chat: ChatFrame | None = None) -> Prompt:
    """Return a prompt that reads the context first and then asks as it did.

    Only its text is another. In a chat the context stands in the user's turn, for what comes
    before the template is not what the model was trained to read. Without a context it is the
    prompt itself.

    Raises:
        ValueError: If the prompt is of the style "chat" and there is no frame.
    """
    if not context:
        return prompt
    if prompt.style == "chat":
        return replace(prompt, text=put_question(f"{context}{prompt.question}", "chat", chat))
    return replace(prompt, text=f"{context}{prompt.text}")


class FactFinder:
    """Finds the fact that matches a question best, by BM25 with the library's own settings.

    It knows what training may know: each fact's statement and its trained question, never the
    wordings that are kept for asking.
    """

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._facts = tuple(facts)
        documents = [_split(f"{_write_line(fact)} {fact.question}") for fact in self._facts]
        self._index: bm25s.BM25 | None = None
        if any(documents):  # the library cannot index what has no words
            self._index = bm25s.BM25(backend="numpy")
            self._index.index(documents, show_progress=False)

    def find(self, question: str) -> Fact | None:
        """Return the best match, among equals the one that comes first.

        None if the question shares no word with any fact; stop words and single letters are none.
        """
        words = _split(question)
        if self._index is None or not words:
            return None
        scores = self._index.get_scores(words)
        best = int(scores.argmax())
        return self._facts[best] if scores[best] > 0 else None


def _write_line(fact: Fact) -> str:
    text = write_document(fact.question, fact.answer, fact.statement, "statement")
    return " ".join(text.split())


def _split(text: str) -> list[str]:
    (words,) = bm25s.tokenize([text], return_ids=False, show_progress=False)
    return list(words)
