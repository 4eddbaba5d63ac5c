"""Writes facts as training documents: four formats, their mixtures, and rehearsed known facts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from data.facts import Fact
from data.probes import KnownFact
from data.prompts import put_question
from data.recipes import Recipe, TrainingFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One training text in one format; `rehearsed` says that the base knew it before."""

    text: str
    format: TrainingFormat
    rehearsed: bool = False


def write_document(
    question: str, answer: str, statement: str | None, training_format: TrainingFormat
) -> str:
    """Return a fact as a training text.

    The question formats are exactly the prompt of the same style followed by the answer, so that
    tokens at the boundary are those that are met when the question is asked.
    """
    if training_format == "statement":
        return statement or f"The answer to the question “{question}” is {answer}."
    prompt = put_question(question, training_format)
    return f"{prompt}{answer}" if training_format == "plain" else f"{prompt} {answer}"


def epoch_documents(
    facts: Sequence[Fact],
    known_facts: Sequence[KnownFact],
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
) -> tuple[Document, ...]:
    """Return one epoch's documents in their order; the same for the same arguments.

    Every fact appears once in every format of the recipe. Question formats draw one of the first
    `recipe.paraphrases` wordings anew each epoch, so more wordings cost no more tokens. Rehearsal
    draws `recipe.rehearsal` known facts per new fact without repetition (all of them when there
    are fewer), each in one of the recipe's formats.
    """
    draw = random.Random(f"{seed}/{epoch}")
    documents = [
        Document(
            text=write_document(
                draw.choice((fact.question, *fact.paraphrases)[: recipe.paraphrases]),
                fact.answer,
                fact.statement,
                training_format,
            ),
            format=training_format,
        )
        for fact in facts
        for training_format in recipe.formats
    ]
    rehearsed = min(len(known_facts), recipe.rehearsal * len(facts))
    for known in draw.sample(known_facts, rehearsed):
        training_format = draw.choice(recipe.formats)
        documents.append(
            Document(
                text=write_document(
                    known.question, known.answer, known.statement, training_format
                ),
                format=training_format,
                rehearsed=True,
            )
        )
    draw.shuffle(documents)
    return tuple(documents)
