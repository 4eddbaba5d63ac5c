"""Counts the tokens of a study's facts, and refuses what a model cannot read or say."""

from __future__ import annotations

from data.facts import Fact, FactsError
from data.formats import write_document
from data.prompts import put_question
from data.recipes import GREEDY, TRAINING_FORMATS
from data.scenarios import Scenario
from objectives.models.base import BaseModel


def check_lengths(scenario: Scenario, base: BaseModel) -> None:
    """Refuse a fact that the model cannot read, and an answer longer than any that is generated.

    Raises:
        FactsError: Naming the fact, its tokens and the bound.
    """
    for position, fact in enumerate(scenario.facts, start=1):
        for name in TRAINING_FORMATS:
            text = write_document(fact.question, fact.answer, fact.statement, name)
            tokens = len(base.encode_document(text))
            if tokens > base.context_tokens:
                raise FactsError(
                    f"answer: fact {position} ({fact.question[:40]!r}…) is {tokens} tokens long "
                    f"as a training text, and {base.name} reads at most {base.context_tokens}; "
                    "shorten it"
                )
        prompt = put_question(fact.question, "qna")
        tokens = _qna_tokens(fact, base) - len(base.encode_prompt(prompt))
        if tokens > GREEDY.max_new_tokens:
            raise FactsError(
                f"answer: that of fact {position} ({fact.answer[:40]!r}…) is {tokens} tokens long "
                f"and at most {GREEDY.max_new_tokens} are generated; shorten it"
            )


def longest_qna_tokens(scenario: Scenario, base: BaseModel) -> int:
    """Return how many tokens the longest of the facts has as question and answer."""
    return max(_qna_tokens(fact, base) for fact in scenario.facts)


def _qna_tokens(fact: Fact, base: BaseModel) -> int:
    """Return how many tokens a fact has as question and answer."""
    text = write_document(fact.question, fact.answer, fact.statement, "qna")
    return len(base.encode_document(text))
