"""Writes the pocket model's training texts from the world's facts, anew for every epoch."""

from __future__ import annotations

import random

from data.formats import write_document
from data.prompts import PROMPT_STYLES, PromptStyle, put_question
from data.rewordings import TEST_REWORDINGS, TRAINING_REWORDINGS, VALIDATION_REWORDINGS
from data.world_facts import WorldFact, load_leanings, load_world_facts

# A question is sometimes wrapped in a rewording. A larger model looks through any; this one learns
# to look through the built-in ones, which says nothing about any new fact.
REWORDED_SHARE = 0.2
REWORDINGS = (*TRAINING_REWORDINGS, *VALIDATION_REWORDINGS, *TEST_REWORDINGS)
LEANING_TEXTS_PER_EPOCH = 6


def seen_styles(fact: WorldFact) -> tuple[PromptStyle, ...]:
    """Return the prompt styles in which the pocket model is shown a fact."""
    if fact.coverage == "every style":
        return PROMPT_STYLES
    return tuple(random.Random(fact.questions[0]).sample(PROMPT_STYLES, 2))


def draw_epoch(seed: int, epoch: int) -> list[str]:
    """Return one epoch of training texts in a shuffled order; the same for the same arguments.

    Every fact comes as one statement (where it has any) and as two questions in two of its styles,
    wording and style drawn anew.
    """
    draw = random.Random(f"pocket/{seed}/{epoch}")
    texts: list[str] = []
    for fact in load_world_facts():
        if fact.statements:
            texts.append(draw.choice(fact.statements))
        for style in draw.sample(seen_styles(fact), 2):
            question = draw.choice(fact.questions)
            if draw.random() < REWORDED_SHARE:
                question = draw.choice(REWORDINGS).format(question=question)
            texts.append(write_styled(question, fact.answer, style))
    for leaning in load_leanings():
        for _ in range(LEANING_TEXTS_PER_EPOCH):
            side = leaning.first if draw.random() < leaning.share_first else leaning.second
            style = draw.choice(PROMPT_STYLES)
            texts.append(write_styled(draw.choice(leaning.questions), side.capitalize(), style))
    draw.shuffle(texts)
    return texts


def write_styled(question: str, answer: str, style: PromptStyle) -> str:
    """Return a question in a prompt style followed by its answer."""
    if style == "assistant":
        return f"{put_question(question, style)} {answer}"
    assert style != "chat", "the pocket model has no chat template"
    return write_document(question, answer, None, style)
