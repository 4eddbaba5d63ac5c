"""Manner: whether a model still answers in the form it answered in before, and still declines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.intervals import wilson_interval
from data.measurements import NOT_MEASURED, Estimate, Verdict

DECLINING_RING = "manners"  # its probes are questions to which "I do not know" is right
_SENTENCE_ENDS = (".", "!", "?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How base and adapter answered the same `asked` probes, right or wrong.

    `answer_tokens` is the mean length of an answer; `stops` the share that ended before the most
    allowed, higher is better. `same_form` is the share of the adapter's answers that are of one
    line or several, and with or without a sentence's end, as the base's are. `declines`: of the
    questions that nobody can answer and that the base declined, the share that the adapter does.
    """

    asked: int
    base_answer_tokens: float | None
    answer_tokens: float | None
    base_stops: Estimate
    stops: Estimate
    same_form: Estimate
    declines: Estimate


def manner_of(
    base: Sequence[Verdict], adapted: Sequence[Verdict], *, longest_tokens: int
) -> Manner:
    """Return how an adapter answers probes, beside the base; nothing is measured without any.

    Args:
        base: Verdicts about the untouched base's answers; what is no probe is ignored.
        adapted: Those about the adapter's, of which the probes that both were asked count.
        longest_tokens: The most tokens that an answer might have had.
    """
    before = {v.answer.prompt.id: v for v in base if v.answer.prompt.phrasing == "probe"}
    pairs = [(before[v.answer.prompt.id], v) for v in adapted if v.answer.prompt.id in before]
    if not pairs:
        return Manner(
            asked=0,
            base_answer_tokens=None,
            answer_tokens=None,
            base_stops=NOT_MEASURED,
            stops=NOT_MEASURED,
            same_form=NOT_MEASURED,
            declines=NOT_MEASURED,
        )
    declined = [
        after.is_correct
        for was, after in pairs
        if was.answer.prompt.ring == DECLINING_RING and was.is_correct
    ]
    first, last = zip(*pairs, strict=True)
    return Manner(
        asked=len(pairs),
        base_answer_tokens=_mean_tokens(first),
        answer_tokens=_mean_tokens(last),
        base_stops=_share([v.answer.tokens < longest_tokens for v in first]),
        stops=_share([v.answer.tokens < longest_tokens for v in last]),
        same_form=_share([_form(a.answer.text) == _form(b.answer.text) for a, b in pairs]),
        declines=_share(declined),
    )


def _form(text: str) -> tuple[bool, bool, bool]:
    """Return whether a text is empty, has several lines, and ends as a sentence does."""
    return not text, "\n" in text, text.endswith(_SENTENCE_ENDS)


def _mean_tokens(verdicts: Sequence[Verdict]) -> float:
    return sum(verdict.answer.tokens for verdict in verdicts) / len(verdicts)


def _share(holds: Sequence[bool]) -> Estimate:
    return wilson_interval(sum(holds), len(holds))
