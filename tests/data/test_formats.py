"""Training documents: what an epoch holds, and that questions look as they will be asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest

from data.facts import Fact
from data.formats import epoch_documents, write_document
from data.oscar_facts import load_oscar_facts
from data.probes import KnownFact
from data.prompts import put_question
from data.recipes import Recipe

FACT = Fact(
    question="Who won?",
    answer="Ada",
    paraphrases=("Who was it that won?", "Which one won?"),
    novel_validation=("The winner was who?",),
)
KNOWN = tuple(
    KnownFact(ring="general", question=f"Q{i}?", answer=f"A{i}", statement=f"S{i}.")
    for i in range(30)
)
RECIPE = Recipe(
    epochs=2,
    rank=4,
    alpha=8,
    cutoff=64,
    warmup_steps=0,
    learning_rate=1e-3,
    formats=("statement", "plain", "qna", "conversation"),
    paraphrases=2,
    rehearsal=3,
)


def test_the_formats_of_a_fact() -> None:
    assert write_document("Who won?", "Ada", None, "plain") == "Who won?\nAda"
    assert write_document("Who won?", "Ada", None, "qna") == "Question: Who won?\nAnswer: Ada"
    assert (
        write_document("Who won?", "Ada", None, "conversation") == "Joe: Who won?\nBrandine: Ada"
    )
    assert write_document("Who won?", "Ada", "Ada won.", "statement") == "Ada won."
    assert "Who won?" in write_document("Who won?", "Ada", None, "statement")


@pytest.mark.parametrize("style", ["plain", "qna", "conversation"])
def test_a_question_document_begins_with_the_prompt_of_its_style(
    style: Literal["plain", "qna", "conversation"],
) -> None:
    prompt = put_question("Who won?", style)
    assert write_document("Who won?", "Ada", None, style).startswith(prompt)


def test_an_epoch_holds_every_fact_once_per_format_and_the_asked_rehearsal() -> None:
    documents = epoch_documents([FACT], KNOWN, RECIPE, seed=1, epoch=0)
    new = [d for d in documents if not d.rehearsed]
    assert Counter(d.format for d in new) == dict.fromkeys(RECIPE.formats, 1)
    rehearsed = [d for d in documents if d.rehearsed]
    assert len(rehearsed) == 3  # three per new fact, one new fact
    assert len({d.text for d in rehearsed}) == 3


def test_the_same_arguments_give_the_same_epoch_and_another_epoch_another_order() -> None:
    facts = load_oscar_facts()
    first = epoch_documents(facts, KNOWN, RECIPE, seed=1, epoch=0)
    assert first == epoch_documents(facts, KNOWN, RECIPE, seed=1, epoch=0)
    assert first != epoch_documents(facts, KNOWN, RECIPE, seed=1, epoch=1)
    assert first != epoch_documents(facts, KNOWN, RECIPE, seed=2, epoch=0)


def test_rehearsal_never_draws_more_known_facts_than_there_are() -> None:
    recipe = replace(RECIPE, rehearsal=99)
    documents = epoch_documents([FACT], KNOWN, recipe, seed=1, epoch=0)
    assert sum(d.rehearsed for d in documents) == len(KNOWN)


def test_only_the_first_wordings_are_used_and_never_a_novel_one() -> None:
    texts = "\n".join(
        d.text
        for epoch in range(40)
        for d in epoch_documents([FACT], (), RECIPE, seed=1, epoch=epoch)
    )
    assert "Who won?" in texts
    assert "Who was it that won?" in texts
    assert "Which one won?" not in texts  # the third of two wordings
    assert "The winner was who?" not in texts


def test_no_oscar_training_text_holds_a_novel_wording() -> None:
    facts = load_oscar_facts()
    recipe = replace(RECIPE, paraphrases=9)
    texts = "\n".join(
        d.text
        for epoch in range(20)
        for d in epoch_documents(facts, (), recipe, seed=0, epoch=epoch)
    )
    novel = [q for f in facts for q in (*f.novel_validation, *f.novel_test)]
    assert not [question for question in novel if question in texts]
