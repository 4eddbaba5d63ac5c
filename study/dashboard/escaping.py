"""Writes untrusted text into a Markdown note so that nothing in it takes effect."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from analysis.wording import show_text

_MARKUP = re.compile(r"[!-/:-@\[-`{-~]")  # all of ASCII's punctuation
_HARMLESS = frozenset(",.;:%'()-")
# GitHub's flavour makes links of bare addresses even where their characters were escaped.
_ADDRESS = re.compile(r"(?<=https:)(?=//)|(?<=http:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)
_WORD_JOINER = "\u2060"

_LABEL_WIDTH = 10
_LINE_WIDTH = 88


def escape_markdown(text: str) -> str:
    """Return untrusted text as one line of Markdown that shows just its characters.

    Punctuation becomes character references, which Markdown shows and does not act upon; bare
    addresses get an invisible character, so that no link is made of them.
    """
    parted = _ADDRESS.sub(_WORD_JOINER, show_text(text))
    escaped = _MARKUP.sub(
        lambda found: found[0] if found[0] in _HARMLESS else f"&#{ord(found[0])};", parted
    )
    # At the beginning of a line these make a list.
    return re.sub(r"^(-|\d+(?=[.)]))", lambda found: f"{_WORD_JOINER}{found[0]}", escaped)


def quote_lines(rows: Sequence[tuple[str, str]], *, longest: int) -> str:
    """Return rows of a label and an untrusted text as a block in which nothing is markup.

    Inside a fence Markdown reads nothing but the fence's end, a line of its own; here every line
    begins with a label of ours or with ten blanks, so that no text can end it.

    Args:
        rows: A label of ours, at most nine characters of letters, and a text on one line.
        longest: How many characters of a text are shown.
    """
    lines = []
    for label, text in rows:
        shown = show_text(text)
        if len(shown) > longest:
            shown = f"{shown[: longest - 1]}…"
        lines += textwrap.wrap(
            shown,
            width=_LINE_WIDTH,
            initial_indent=label.ljust(_LABEL_WIDTH),
            subsequent_indent=" " * _LABEL_WIDTH,
            break_on_hyphens=False,
        ) or [label]
    return "\n".join(("```", *lines, "```"))
