"""Says what a study asks of a model's memory at most: its largest step, its longest prompt."""

from __future__ import annotations

import math
from collections.abc import Callable

from data.formats import epoch_documents
from data.prompts import ChatFrame, fact_prompts
from data.recipes import Recipe
from data.scenarios import Scenario
from objectives.bank.batches import Batch, count_predicted, cut_examples, make_batches
from objectives.learn import EVERYTHING
from objectives.models.machine.footprint import Demand

# Returns how many tokens a text has.
TokenCounter = Callable[[str], int]

# English has about four characters to a token in the vocabularies of large models; names have
# fewer, and a guess should not be too small.
_CHARACTERS_PER_TOKEN = 3


def guess_tokens(text: str) -> int:
    """Return about how many tokens a text has where no tokenizer is at hand, rather too many."""
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


def epoch_batches(
    scenario: Scenario, recipe: Recipe, count: TokenCounter, *, seed: int = 0
) -> list[Batch]:
    """Return the batches of a trial's first epoch, of token numbers that mean nothing.

    All facts are taught and all known facts may be rehearsed: what the base knows is not asked.
    """
    documents = epoch_documents(scenario.facts, scenario.known_facts, recipe, seed=seed, epoch=0)
    lengths = [count(document.text) + 1 for document in documents]  # and the end of the text
    examples = cut_examples(map(range, lengths), cutoff=recipe.cutoff, packing=recipe.packing)
    return make_batches(examples, recipe.batch_size)


def demand_of(
    scenario: Scenario,
    recipe: Recipe,
    count: TokenCounter,
    *,
    answer_tokens: int,
    gradient_checkpointing: bool,
    chat: ChatFrame | None = None,
) -> Demand:
    """Return what a study demands at most.

    Args:
        scenario: What is taught and asked.
        recipe: The largest that will be trained.
        count: Returns how many tokens a text has.
        answer_tokens: The longest answer.
        gradient_checkpointing: As the bank will be made.
        chat: The model's chat template, if it has one.
    """
    prompts = fact_prompts(scenario.facts, EVERYTHING, chat=chat)
    texts = [prompt.text for prompt in prompts]
    texts += [probe.prompt(chat=chat).text for probe in scenario.probes]
    return Demand(
        rank=recipe.rank,
        step_tokens=max(map(count_predicted, epoch_batches(scenario, recipe, count))),
        prompt_tokens=max(map(count, texts)),
        answer_tokens=answer_tokens,
        gradient_checkpointing=gradient_checkpointing,
    )
