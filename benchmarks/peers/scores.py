"""Judges peers' answers and scores them, with the project's own matcher and definitions."""

from __future__ import annotations

from collections.abc import Sequence

from data.measurements import Answer, Verdict
from data.prompts import Prompt
from data.scoring import knowledge_loss, ring_changes, score_recall
from objectives.judges.matcher import Matcher


def judge_texts(prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[Verdict, ...]:
    """Return the matcher's verdicts; tokens are not counted."""
    return Matcher().judge(
        [
            Answer(prompt=prompt, text=text, tokens=0)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    )


def score(base: Sequence[Verdict], adapted: Sequence[Verdict]) -> tuple[float, float]:
    """Return recall and knowledge loss of the adapted model."""
    recall = score_recall(adapted).value
    loss = knowledge_loss(ring_changes(base, adapted)).value
    assert recall is not None
    assert loss is not None
    return recall, loss
