"""Decides without a model whether a free answer names the accepted one: the first of the judges.

Every rule errs towards "incorrect": what is refused here can still be accepted by a judge model,
what is accepted here is final. The conventions, each with cases in the tests:

- Letters are compared without case, diacritics and apostrophes; hyphens and punctuation separate
  words; a leading article is ignored; "&" is "and"; numbers are equal as 7, seven and 7.0 or 1,000
  and 1000 (number words up to twenty). Dots and spaces between initials do not matter, but an
  initial stands for a name, or may be left out, only where an alias says so.
- An accepted answer counts where it stands as whole words and is not a part of a longer name:
  "Rocky" is not found in "Rocky Balboa", "Rocky II" or "Rocky: The Return".
- It does not count where it is denied ("not X", "X did not win", "X? No, Y") or only repeats the
  question's own words; nor does it where another candidate is offered beside it ("X or Y",
  "X and Y", "X, Y, Z"). "X (Y)" and "X, The Film" are explanations, not lists.
- A joint answer ("X and Y") needs all its names, in any order and joined in any way but "or".
- Words that do other work in sentences (the symbols I and He, the film Up) must be all of the
  answer, stand at the end of a clause after "is" or "was", or begin one as in "Up won".
- Saying that one does not know is no attempt; where that is the accepted answer it is right, in
  whatever words it is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from data.answer_words import Break, Reading, read_text
from data.english import (
    ARTICLES,
    ASKING,
    CLAIMING_VERBS,
    CLAUSE_OPENERS,
    COPULAS,
    DENIAL_WORDS,
    DENIED_AFTER,
    DENIED_BEFORE,
    FUNCTION_WORDS,
    GUESS,
    HEDGES,
    JOINERS,
    LARGER_NUMBERS,
    LEAD_INS,
    NEGATION,
    NEGATIONS,
    PARTICLES,
    REFUSAL,
)
from data.measurements import Label

# How far from an occurrence a denial is looked for, in words; it keeps long texts linear.
_REACH = 24


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Words to find in an answer, and whether its author wrote them as a name, with a capital."""

    words: tuple[str, ...]
    breaks: tuple[Break, ...]
    is_name: bool

    @property
    def is_number(self) -> bool:
        return len(self.words) == 1 and self.words[0].lstrip("-")[:1].isdigit()


# A way to be right: every part must be found, in any one of its patterns.
_Parts = tuple[tuple[_Pattern, ...], ...]


@dataclass(frozen=True, slots=True)
class _Accepted:
    exact: frozenset[tuple[str, ...]]
    ways: tuple[_Parts, ...]
    includes_refusal: bool


@dataclass(frozen=True, slots=True)
class _Occurrence:
    """Words start to end of an answer; `is_small` where they are not written as a name."""

    pattern: _Pattern
    start: int
    end: int
    is_small: bool


def match_answer(question: str, answer: str, accepted: Sequence[str]) -> Label:
    """Return "correct", "incorrect" or "not_attempted", never "unjudged".

    Args:
        question: What was asked; its own words, repeated, are no answer.
        answer: What was said, untrusted text of any length; time is linear in it.
        accepted: The texts that count as right, each by itself.

    An answer without any word (empty, punctuation, control characters) is not attempted.
    """
    reading = read_text(answer)
    if not reading.words:
        sign = answer.strip()
        is_right = sign != "" and sign in (text.strip() for text in accepted)
        return "correct" if is_right else "not_attempted"
    right = _read_accepted(tuple(accepted))
    if _without_article(reading.words) in right.exact:
        return "correct"
    asked = _read_question(question)
    text = " ".join(reading.words)
    refuses = REFUSAL.search(text) is not None
    if not (refuses and right.includes_refusal):
        matcher = _Matcher(asked, reading, right.ways)
        if matcher.names_accepted_answer():
            return "correct"
        if not refuses:
            return "incorrect"
    guesses = GUESS.search(text) or _Matcher(asked, reading, ()).offers_candidate()
    if guesses and not REFUSAL.fullmatch(text):
        return "incorrect"
    return "correct" if right.includes_refusal else "not_attempted"


class _Matcher:
    """One answer against the ways to be right."""

    def __init__(
        self, question: tuple[str, ...], reading: Reading, ways: tuple[_Parts, ...]
    ) -> None:
        self.question = question
        self.asked_denials = DENIAL_WORDS.intersection(question)
        self.words = reading.words
        self.capitals = reading.capitals
        self.breaks = reading.breaks
        self.found: dict[_Pattern, list[_Occurrence]] = {}
        self.ways = [parts for parts in ways if self._finds_all(parts)]
        # Words that belong to any accepted text, and to one that is right by itself. The last
        # element stays 0: it is what lies before the first word and after the last.
        self.covered = bytearray(len(self.words) + 1)
        self.sufficient = bytearray(len(self.words) + 1)
        for parts in self.ways:
            for part in parts:
                for pattern in part:
                    for occurrence in self.found[pattern]:
                        span = slice(occurrence.start, occurrence.end)
                        ones = b"\x01" * (occurrence.end - occurrence.start)
                        self.covered[span] = ones
                        if len(parts) == 1:
                            self.sufficient[span] = ones

    def names_accepted_answer(self) -> bool:
        """Return whether a way to be right is asserted, undenied and without a rival."""
        asserted: list[_Occurrence] = []
        for parts in self.ways:
            standing = [
                [
                    occurrence
                    for pattern in part
                    for occurrence in self.found[pattern]
                    if self._stands_alone(occurrence)
                ]
                for part in parts
            ]
            if all(standing):
                asserted += [occurrence for part in standing for occurrence in part]
        if not asserted or any(self._is_denied(occurrence) for occurrence in asserted):
            return False
        if any(self._has_neighbouring_rival(occurrence) for occurrence in asserted):
            return False
        return not self.offers_candidate(asserted)

    def _finds_all(self, parts: _Parts) -> bool:
        # All patterns of all parts are looked up, so that `found` knows them afterwards.
        return all([any([self._find(pattern) for pattern in part]) for part in parts])

    def _find(self, pattern: _Pattern) -> list[_Occurrence]:
        if pattern in self.found:
            return self.found[pattern]
        wanted, words = list(pattern.words), self.words
        found: list[_Occurrence] = []
        start = -1
        for _ in range(words.count(wanted[0])):
            start = words.index(wanted[0], start + 1)
            end = start + len(wanted)
            if words[start:end] == wanted and all(
                self.breaks[start + i] not in ".?" or pattern.breaks[i] in ".?"
                for i in range(1, len(wanted))
            ):
                is_small = not (pattern.is_number or (pattern.is_name and self.capitals[start]))
                found.append(_Occurrence(pattern, start, end, is_small))
        self.found[pattern] = found
        return found

    def _stands_alone(self, occurrence: _Occurrence) -> bool:
        return (
            not self._continues_a_name(occurrence)
            and not self._repeats_question(occurrence)
            and self._is_in_answer_position(occurrence)
        )

    def _is_name_like(self, i: int, beside: _Occurrence | None = None) -> bool:
        """Return whether word i may be (part of) a name that is not accepted and not asked about.

        Beside an answer that is written small any word with a meaning of its own counts, beside a
        number any other number.
        """
        if not 0 <= i < len(self.words) or self.covered[i]:
            return False
        word = self.words[i]
        if word in self.question:
            return False
        if beside is not None and beside.pattern.is_number and _is_number(word):
            return True
        if word in FUNCTION_WORDS:
            return False
        return self.capitals[i] or (beside is not None and beside.is_small)

    def _continues_a_name(self, occurrence: _Occurrence) -> bool:
        pattern, start, end = occurrence.pattern, occurrence.start, occurrence.end
        before = start - 1
        if start and self.breaks[start] in " -" and not self.covered[before]:
            word = self.words[before]
            if _is_number(word):
                # A year may stand before a name: "In 2023 Brendan Fraser won".
                if pattern.is_number or len(word) != 4:
                    return True
            elif self._is_name_like(before, occurrence):
                return True
        before = self._skip_articles(before, -1)
        if before > 0 and self.words[before] == "of" and self._is_name_like(before - 1):
            return True
        if end == len(self.words) or self.breaks[end] not in " -:" or self.covered[end]:
            return False
        word = self.words[end]
        if _is_number(word):
            return self.breaks[end] != ":" and (pattern.is_number or word not in self.question)
        if word in PARTICLES or self.breaks[end] == ":":
            after = self._skip_articles(end + (word in PARTICLES), 1)
            return self._is_name_like(after, occurrence)
        return self._is_name_like(end, occurrence)

    def _skip_articles(self, i: int, step: Literal[-1, 1]) -> int:
        while 0 <= i < len(self.words) and self.words[i] in ARTICLES:
            i += step
        return i

    def _repeats_question(self, occurrence: _Occurrence) -> bool:
        """Return whether the words stand beside the same word here and in the question."""
        wanted, asked = occurrence.pattern.words, self.question
        if wanted[0] not in asked:
            return False
        before = self.words[occurrence.start - 1] if occurrence.start else None
        after = self.words[occurrence.end] if occurrence.end < len(self.words) else None
        for i in range(len(asked) - len(wanted) + 1):
            j = i + len(wanted)
            if asked[i:j] == wanted and (
                (i > 0 and asked[i - 1] == before) or (j < len(asked) and asked[j] == after)
            ):
                return True
        return False

    def _is_in_answer_position(self, occurrence: _Occurrence) -> bool:
        wanted = occurrence.pattern.words
        if len(wanted) > 1 or wanted[0] not in FUNCTION_WORDS:
            return True
        start, end = occurrence.start, occurrence.end
        opens = self.breaks[start] not in " -" or self.words[start - 1] in COPULAS
        return opens and (
            self.breaks[end] not in " -" or self.words[end] in ("won", "wins", "stands")
        )

    def _is_denied(self, occurrence: _Occurrence) -> bool:
        start, end = occurrence.start, occurrence.end
        before = self._phrase(max(0, start - _REACH), start)
        if DENIED_BEFORE.search(before):
            return True
        after = self._phrase(end, min(len(self.words), end + _REACH))
        if self._contrasts_with_other(end):
            after = after.replace("not ", "", 1).replace("never ", "", 1)
        if DENIED_AFTER.search(after):
            return True
        return self._is_asked_about(occurrence)

    def _contrasts_with_other(self, i: int) -> bool:
        """Return whether "not" and another name follow: "X not Y" says X."""
        if i < len(self.words) and self.words[i] == "and":
            i += 1
        return (
            i < len(self.words)
            and self.words[i] in ("not", "never")
            and self._is_name_like(self._skip_articles(i + 1, 1))
        )

    def _is_asked_about(self, occurrence: _Occurrence) -> bool:
        """Return whether the sentence is itself a question: "Who is X?"."""
        start, end = occurrence.start, occurrence.end
        while start > max(0, occurrence.start - _REACH) and self.breaks[start] not in ".?":
            start -= 1
        while end < min(len(self.words), occurrence.end + _REACH) and self.breaks[end] not in ".?":
            end += 1
        return self.breaks[end] == "?" and self.words[start] in ASKING

    def _phrase(self, start: int, end: int) -> str:
        """Return words with their breaks as signs; the question's own denials are blanked."""
        pieces: list[str] = []
        for i in range(start, end):
            word = self.words[i]
            sign = self.breaks[i]
            if sign not in " -/":
                pieces.append(sign)
            elif word in CLAUSE_OPENERS:
                pieces.append(",")
            pieces.append("_" if self._is_asked_denial(i) else word)
        sign = self.breaks[end]
        if sign not in " -/":
            pieces.append(sign)
        return " " + " ".join(pieces) + " "

    def _is_asked_denial(self, i: int) -> bool:
        """Return whether the question itself has this denial: "Who lost?", "Who did not win?"."""
        word = self.words[i]
        return word in self.asked_denials and (word not in NEGATIONS or self._is_echo(i))

    def _is_echo(self, i: int) -> bool:
        """Return whether both neighbours are those in the question, whose ends fit any word."""
        asked, word = self.question, self.words[i]
        before = self.words[i - 1] if i else None
        after = self.words[i + 1] if i + 1 < len(self.words) else None
        return any(
            asked[j] == word
            and (j == 0 or asked[j - 1] == before)
            and (j + 1 == len(asked) or asked[j + 1] == after)
            for j in range(len(asked))
        )

    def _has_neighbouring_rival(self, occurrence: _Occurrence) -> bool:
        start, end = occurrence.start, occurrence.end
        if self.breaks[start] == "/" and not self.sufficient[start - 1]:
            return True
        if end < len(self.words) and self.breaks[end] == "/" and not self.sufficient[end]:
            return True
        after = end
        while after < len(self.words) and self.words[after] in JOINERS | ARTICLES:
            after += 1
        if after > end and self.words[end] in JOINERS and self._is_name_like(after, occurrence):
            return True
        before = self._skip_articles(start - 1, -1)
        if (
            before > 0
            and self.words[before] in JOINERS
            and self._is_name_like(before - 1, occurrence)
        ):
            return True
        return self._is_hedged(occurrence)

    def _is_hedged(self, occurrence: _Occurrence) -> bool:
        """Return whether the sentence says "or" of anything but two accepted answers."""
        for step, first in ((-1, occurrence.start - 1), (1, occurrence.end)):
            i = first
            for _ in range(_REACH):
                if not 0 <= i < len(self.words):
                    break
                word = self.words[i]
                starts_sentence = self.breaks[i if step > 0 else i + 1] in ".?"
                if starts_sentence and not (i == occurrence.end and word == "or"):
                    break
                if word in ("or", "either", "versus", "vs") and not self._is_echo(i):
                    after = self._skip_articles(i + 1, 1)
                    if not (self.sufficient[i - 1] and self.sufficient[after]):
                        return True
                i += step
        return False

    def offers_candidate(self, asserted: Sequence[_Occurrence] = ()) -> bool:
        """Return whether a clause by itself names something that is not accepted.

        One word is no rival to an accepted name of several: "Michelle Yeoh. Wonderful."
        """
        longest = max(asserted, key=lambda each: each.end - each.start, default=None)
        fewest_words = 2 if longest and len(longest.pattern.words) > 1 else 1
        ends = {each.end for each in asserted}
        for start, end in self._clauses():
            if any(self.covered[start:end]) or self.breaks[start] == "(":
                continue
            explains = start in ends and self.breaks[start] == ","
            if explains and self.words[start] in ARTICLES:
                continue
            if self._names_candidate(start, end, longest, fewest_words):
                return True
        return False

    def _names_candidate(
        self, start: int, end: int, beside: _Occurrence | None, fewest_words: int
    ) -> bool:
        small = beside is not None and beside.is_small
        lead_ins = HEDGES | ARTICLES if small else LEAD_INS
        first = start
        while first < end and self.words[first] in lead_ins and not self.covered[first]:
            first += 1
        last = first
        while last < end and (
            self._is_name_like(last, beside)
            or (
                last > first
                and self.words[last] in PARTICLES | ARTICLES
                and last + 1 < end
                and (self.words[last + 1] in ARTICLES or self._is_name_like(last + 1, beside))
            )
        ):
            last += 1
        if last - first < fewest_words or (small and last - first > 3):
            return False
        ends_here = last == end or (
            not small and (self.words[last] in CLAIMING_VERBS or _is_number(self.words[last]))
        )
        return ends_here and not NEGATION.search(" ".join(self.words[start:end]))

    def _clauses(self) -> Iterator[tuple[int, int]]:
        start = 0
        for i in range(1, len(self.words) + 1):
            if (
                i == len(self.words)
                or self.breaks[i] not in " -"
                or self.words[i] in CLAUSE_OPENERS
            ):
                opener = self.words[start] in CLAUSE_OPENERS
                yield start + opener, i
                start = i


def _is_number(word: str) -> bool:
    return word[-1].isdigit() or word in LARGER_NUMBERS


def _without_article(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(words[1:] if len(words) > 1 and words[0] in ARTICLES else words)


@lru_cache(maxsize=16_384)
def _read_question(question: str) -> tuple[str, ...]:
    return tuple(read_text(question).words)


@lru_cache(maxsize=16_384)
def _read_accepted(accepted: tuple[str, ...]) -> _Accepted:
    exact: set[tuple[str, ...]] = set()
    ways: list[_Parts] = []
    for text in accepted:
        reading = read_text(text)
        if not reading.words:
            continue
        skipped = len(reading.words) - len(_without_article(reading.words))
        whole = _pattern(reading, skipped, len(reading.words))
        exact.add(whole.words)
        ways.append(((whole,),))
        parts = _joint_parts(reading)
        if len(parts) > 1:
            ways.append(_with_shared_surname(parts))
    includes_refusal = any(REFUSAL.search(" ".join(words)) for words in exact)
    return _Accepted(frozenset(exact), tuple(ways), includes_refusal)


def _pattern(reading: Reading, start: int, end: int) -> _Pattern:
    return _Pattern(
        tuple(reading.words[start:end]),
        tuple(reading.breaks[start:end]),
        any(reading.capitals[start:end]),
    )


def _joint_parts(reading: Reading) -> list[_Pattern]:
    """Return the names that "and" and commas join, or nothing where one of them is not a name."""
    parts: list[_Pattern] = []
    start = 0
    for i in range(1, len(reading.words) + 1):
        at_end = i == len(reading.words)
        if not (at_end or reading.words[i] == "and" or reading.breaks[i] == ","):
            continue
        while start < i and reading.words[start] in ARTICLES | {"and"}:
            start += 1
        if start < i:
            part = _pattern(reading, start, i)
            if not part.is_name or all(word in FUNCTION_WORDS for word in part.words):
                return []
            parts.append(part)
        start = i
    return parts


def _with_shared_surname(parts: Sequence[_Pattern]) -> _Parts:
    """Return joint names so that "Joel and Ethan Coen" and "Joel Coen and Ethan Coen" are equal.

    The surname becomes a part of its own, so that it must be said at least once.
    """
    lengths = [len(part.words) for part in parts]
    surname = _pattern_tail(parts[-1])
    is_said_once = set(lengths[:-1]) == {1} and lengths[-1] == 2
    is_said_of_all = min(lengths) > 1 and all(_pattern_tail(part) == surname for part in parts)
    if not (is_said_once or is_said_of_all):
        return tuple((part,) for part in parts)
    given = [
        part if is_said_once and part is not parts[-1] else _pattern_head(part) for part in parts
    ]
    full = [_Pattern(name.words + surname.words, (*name.breaks, " "), True) for name in given]
    return (*zip(given, full, strict=True), (surname,))


def _pattern_head(pattern: _Pattern) -> _Pattern:
    return _Pattern(pattern.words[:-1], pattern.breaks[:-1], pattern.is_name)


def _pattern_tail(pattern: _Pattern) -> _Pattern:
    return _Pattern(pattern.words[-1:], (" ",), True)
