"""Where a continuation is over, and what of it is judged."""

from __future__ import annotations

from collections.abc import Sequence

from data.measurements import Answer
from data.prompts import Prompt, PromptStyle, cut_answer
from objectives.answers.request import Continuation
from objectives.models.base import BaseModel


class Endings:
    """Knows when a continuation is over.

    That is at a token that ends it, at its longest, or where its answer has ended.

    An answer has ended once no further token can change what `cut_answer` leaves of the text. That
    takes a line break, so texts are looked at only after one. In a chat the model itself ends its
    answer; only where its template has no token for that, it has ended where a next turn opens.
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._ends = frozenset(base.token_ids.ends)
        self._next_turn = "" if base.chat is None else base.chat.end
        self._breaks_line: dict[int, bool] = {}

    def breaks_line(self, token_id: int) -> bool:
        """Return whether a token's text contains a line break."""
        if token_id not in self._breaks_line:
            self._breaks_line[token_id] = "\n" in self._base.decode([token_id])
        return self._breaks_line[token_id]

    def may_have_ended(self, token_ids: Sequence[int], style: PromptStyle = "plain") -> bool:
        """Return whether it takes a look at the text to know; quick."""
        if style == "chat":
            return bool(self._next_turn)
        return any(map(self.breaks_line, token_ids))

    def has_ended(self, token_ids: Sequence[int], style: PromptStyle = "plain") -> bool:
        """Return whether what follows these tokens is cut off, whatever it is."""
        text = self._base.decode(list(token_ids))
        if style == "chat":
            return bool(self._next_turn) and self._next_turn in text
        # A letter would lengthen an answer that had not ended, and cannot end one.
        return cut_answer(text + "x") == cut_answer(text)

    def is_over(
        self, token_ids: Sequence[int], max_new_tokens: int, style: PromptStyle = "plain"
    ) -> bool:
        """Return whether generation stops at the last of these tokens."""
        if not token_ids:
            return False
        return (
            len(token_ids) >= max_new_tokens
            or token_ids[-1] in self._ends
            or (self.may_have_ended(token_ids, style) and self.has_ended(token_ids, style))
        )

    def trim(
        self, token_ids: Sequence[int], max_new_tokens: int, style: PromptStyle = "plain"
    ) -> tuple[int, ...]:
        """Return the tokens up to where generation stops, all if it goes on after them."""
        for count in range(1, len(token_ids)):
            if self.is_over(token_ids[:count], max_new_tokens, style):
                return tuple(token_ids[:count])
        return tuple(token_ids)

    def continuation(self, prompt: Prompt, token_ids: Sequence[int]) -> Continuation:
        """Return what was generated after a prompt, its answer cut out."""
        text = self._base.decode([token for token in token_ids if token not in self._ends])
        if prompt.style == "chat" and self._next_turn:
            text = text.partition(self._next_turn)[0]
        answer = Answer(prompt=prompt, text=cut_answer(text, prompt.style), tokens=len(token_ids))
        return Continuation(answer=answer, token_ids=tuple(token_ids))
