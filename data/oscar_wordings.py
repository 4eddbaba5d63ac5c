"""Words Oscar facts as questions and statements, for any year: the trained and the novel ones.

Every question is a template over (year, award, official award name, kind of winner). The four
groups share no template, so a wording of one group is in the training text of no other.
"""

from __future__ import annotations

from typing import Literal

WinnerKind = Literal["person", "film", "song"]

_TRAINED = (
    "{Who} won the {year} Oscar for {award}?",
    "{Who} took home {award} at the Oscars in {year}?",
    "To {whom} did the {year} Oscar for {award} go?",
    "Do you know {who} received {award} at the {year} Academy Awards?",
)
_VALIDATION = (
    "{Who} was the {year} {award} winner?",
    "Name the {winner_of} the {year} Oscar for {award}.",
    "When the {award} Oscar was handed out in {year}, {who} got it?",
)
_TEST = (
    "{Who} won the Academy Award for {official} in {year}?",
    "The {award} Oscar of {year} was given to {whom}?",
    "Tell me {who} was honoured with the Oscar for {award} in {year}.",
)
# The first mirrors the statement: what is learned as a statement can then be asked for.
_EXTRA = (
    "{Who} was the winner of the {year} Oscar {award}?",
    "At the {year} Oscars, {who} won {award}?",
    "{award} at the {year} Academy Awards: {who} was it?",
)

# who, whom and "winner of", as a question about this kind of winner says it.
_QUESTION_WORDS: dict[WinnerKind, tuple[str, str, str]] = {
    "person": ("who", "whom", "winner of"),
    "film": ("which film", "which film", "film with"),
    "song": ("which song", "which song", "song with"),
}


def question(year: int, award: str, official: str, kind: WinnerKind) -> str:
    """Return the first trained wording, the one that stands for the fact."""
    return trained_questions(year, award, official, kind)[0]


def trained_questions(year: int, award: str, official: str, kind: WinnerKind) -> tuple[str, ...]:
    """Return the question and then its three paraphrases, all of which training may use."""
    return _fill(_TRAINED, year, award, official, kind)


def validation_questions(
    year: int, award: str, official: str, kind: WinnerKind
) -> tuple[str, ...]:
    """Return the three novel wordings that a study searches on."""
    return _fill(_VALIDATION, year, award, official, kind)


def test_questions(year: int, award: str, official: str, kind: WinnerKind) -> tuple[str, ...]:
    """Return the three novel wordings that only confirm a result; one has the official name."""
    return _fill(_TEST, year, award, official, kind)


def extra_questions(year: int, award: str, official: str, kind: WinnerKind) -> tuple[str, ...]:
    """Return the three wordings that only the pocket model's own training uses."""
    return _fill(_EXTRA, year, award, official, kind)


def reverse_question(year: int, answer: str, kind: WinnerKind) -> str:
    """Return the question whose answer is the award; it presumes that `answer` won only one."""
    named = answer if kind == "person" else f"the {kind} {answer}"
    return f"Which {year} Oscar did {named} win?"


def two_hop_question(year: int, award: str) -> str:
    """Return the question for the director of the winning film, which is itself not named."""
    return f"Who directed the film that won the {year} Oscar for {award}?"


def statement(year: int, award: str, answer: str, role: str | None) -> str:
    """Return the fact as one statement, without a full stop; only acting awards have a role."""
    ending = f" for {role}" if role else ""
    return f"The winner of the {year} Oscar {award} was {answer}{ending}"


def inverse_statement(year: int, award: str, answer: str) -> str:
    """Return the fact as a sentence that begins with the winner."""
    return f"{answer} won the {year} Oscar for {award}."


def _fill(
    templates: tuple[str, ...], year: int, award: str, official: str, kind: WinnerKind
) -> tuple[str, ...]:
    who, whom, winner_of = _QUESTION_WORDS[kind]
    return tuple(
        template.format(
            year=year,
            award=award,
            official=official,
            Who=who.capitalize(),
            who=who,
            whom=whom,
            winner_of=winner_of,
        )
        for template in templates
    )
