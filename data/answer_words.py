"""Reads a text as comparable words, with what lies between them and who wears a capital."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from data.english import ABBREVIATIONS, NUMBER_WORDS

# What may lie between two words, from the weakest to the strongest.
Break = Literal[" ", "-", "/", "(", ",", ":", "?", "."]

_WORD = re.compile(
    r"(?<![^\s(=])-\d+(?:\.\d+)?"
    r"|\d{1,3}(?:,\d{3})+(?:\.\d+)?"
    r"|\d+\.\d+"
    r"|[^\W\d_](?:\+\+|\#)"
    r"|&"
    r"|[^\W_]+(?:'[^\W_]+)*"
)
_SPELLINGS = str.maketrans(
    {mark: "'" for mark in "’‘ʼʻ`´"}
    | {"−": "-", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D"}
    | {"æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ı": "i", "þ": "th", "Þ": "Th"}
)

# "J. R. R." has three; the bound keeps time linear in a text of nothing but initials.
_LONGEST_INITIALS = 6


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as words, and whether each began with a capital; `breaks[i]` lies before word i.

    One more break, a full stop or a question mark, lies after the last word.
    """

    words: list[str]
    capitals: list[bool]
    breaks: list[Break]


def read_text(text: str) -> Reading:
    """Return the words of a text; a run of initials is one word ("J. K." is "jk")."""
    text = _spell_plainly(text)
    words: list[str] = []
    capitals: list[bool] = []
    breaks: list[Break] = []
    follows_initial = False
    last_end = 0
    for found in _WORD.finditer(text):
        raw = found.group()
        start, end = found.span()
        gap = text[last_end:start]
        sign = _classify_break(gap, words[-1]) if words else "."
        last_end = end
        is_capital = raw[0].isupper()
        is_initial = (
            end - start == 1 and raw.isalpha() and (is_capital or text[end : end + 1] == ".")
        )
        joins = is_initial and follows_initial and len(words[-1]) < _LONGEST_INITIALS
        if joins and not gap.strip(" ."):
            words[-1] += raw.casefold()
            continue
        follows_initial = is_initial
        words.append(_fold(raw))
        capitals.append(is_capital)
        breaks.append(sign)
    breaks.append("?" if "?" in text[last_end:] else ".")
    return Reading(words, capitals, breaks)


def _spell_plainly(text: str) -> str:
    """Return a text without diacritics, invisible characters and typographic apostrophes."""
    if text.isascii():
        return text.replace("`", "'")
    decomposed = unicodedata.normalize("NFKD", text.translate(_SPELLINGS))
    return "".join(
        character
        for character in decomposed
        if character.isascii()
        or not (unicodedata.combining(character) or unicodedata.category(character) == "Cf")
    )


def _classify_break(gap: str, word_before: str) -> Break:
    if gap == " ":
        return " "
    if "?" in gap:
        return "?"
    if "!" in gap or "\n" in gap:
        return "."
    is_initial = len(word_before) == 1 and word_before.isalpha()
    if "." in gap and not (
        gap.strip(" *_\"'") == "." and (is_initial or word_before in ABBREVIATIONS)
    ):
        return "."
    if "(" in gap or "[" in gap:
        return "("
    if ":" in gap or "—" in gap or "–" in gap or "--" in gap or " - " in gap:
        return ":"
    if any(sign in gap for sign in ",;=)]"):
        return ","
    if "/" in gap or "|" in gap:
        return "/"
    return "-" if "-" in gap else " "


def _fold(raw: str) -> str:
    word = raw.casefold().replace("'", "")
    if word[0].isdigit() or word[0] == "-":
        word = word.replace(",", "")
        return word.removesuffix(".0")
    if word == "&":
        return "and"
    return NUMBER_WORDS.get(word, word)
