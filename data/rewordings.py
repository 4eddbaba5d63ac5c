"""Rewords any question by rule, keeping it intact, for facts that come with one wording only."""

from __future__ import annotations

TRAINING_REWORDINGS = (
    "Please answer this: {question}",
    "Here is a question for you. {question}",
    "Can you tell me? {question}",
)
VALIDATION_REWORDINGS = (
    "I would like to know: {question}",
    "{question} What do you say?",
    "Let me ask you something: {question}",
)
TEST_REWORDINGS = (
    "I have been wondering about this. {question}",
    "Quiz time! {question}",
    "{question} Give me the answer, please.",
)


def reword_for_training(question: str) -> tuple[str, ...]:
    """Return the rewordings of a question that training may use."""
    return _reword(question, TRAINING_REWORDINGS)


def reword_for_validation(question: str) -> tuple[str, ...]:
    """Return the rewordings of a question that a study searches on."""
    return _reword(question, VALIDATION_REWORDINGS)


def reword_for_test(question: str) -> tuple[str, ...]:
    """Return the rewordings of a question that only confirm a result."""
    return _reword(question, TEST_REWORDINGS)


def _reword(question: str, rewordings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(rewording.format(question=question) for rewording in rewordings)
