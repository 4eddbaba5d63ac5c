"""What the untouched model recalls with facts in its prompt: what training has to compete with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from data.facts import Fact
from data.in_context import FactFinder, put_before, write_context
from data.measurements import NOT_MEASURED, Estimate, Floor, FloorName
from data.prompts import Prompt, fact_prompts
from data.recipes import GREEDY
from data.scoring import score_recall
from objectives.answers.generate import generate
from objectives.answers.request import BASE, Request, never, stoppable
from objectives.judges.base import Judge, judge_answers
from objectives.learn import SEARCHED
from objectives.models.base import BaseModel

# Long prompts go in small batches: as many tokens as 512 short questions have.
_TOKENS_PER_BATCH = 2**14

# A floor is to take minutes where a study takes hours.
_MOST_TOKENS = 2**24


def measure_floors(
    base: BaseModel,
    facts: Sequence[Fact],
    *,
    judge: Judge,
    base_recall: Estimate | None = None,
    should_stop: Callable[[], bool] = never,
) -> tuple[Floor, ...]:
    """Return what the base recalls of the facts untold, told all of them, and told the best match.

    It is asked greedily what a search asks its adapters, and scored alike; the judge sees the
    question without what stood before it. Where the facts do not fit the model's context, the
    floor is not measured and says why.

    Args:
        base: The untouched model.
        facts: The new facts; without any, nothing is measured.
        judge: Decides about the answers.
        base_recall: What the base recalls untold if it was asked already; None asks it now.
        should_stop: Asked before every forward pass.

    Raises:
        AskingStopped: If `should_stop` says so.
        JudgeUnreachable: If the judge gives no reply.
    """
    prompts = fact_prompts(facts, SEARCHED, chat=base.chat)
    finder = FactFinder(facts)
    matches = {prompt.question: finder.find(prompt.question) for prompt in prompts}
    best = {question: write_context((fact,) if fact else ()) for question, fact in matches.items()}
    everything = write_context(facts)
    with stoppable(base.model, should_stop):
        return (
            _measure(base, "base", prompts, [""] * len(prompts), judge)
            if base_recall is None
            else Floor(name="base", recall=base_recall, context_tokens=0.0),
            _measure(base, "all facts", prompts, [everything] * len(prompts), judge),
            _measure(base, "best fact", prompts, [best[p.question] for p in prompts], judge),
        )


def _measure(
    base: BaseModel,
    name: FloorName,
    prompts: Sequence[Prompt],
    contexts: Sequence[str],
    judge: Judge,
) -> Floor:
    """Return what the base recalls when each prompt has its own context before it."""
    if not prompts:
        return _not_measured(name, "there is no fact to ask about")
    pairs = list(zip(contexts, prompts, strict=True))
    longest = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1].text))
    # One is looked at first: thousands of contexts may be far too long to be put together.
    reason = _why_not(base, _count_tokens(base, put_before(*longest, base.chat)), len(prompts))
    if reason is not None:
        return _not_measured(name, reason)
    told = [put_before(context, prompt, base.chat) for context, prompt in pairs]
    tokens = [_count_tokens(base, prompt) for prompt in told]
    reason = _why_not(base, max(tokens), len(prompts))
    if reason is not None:
        return _not_measured(name, reason)
    continuations = generate(
        base,
        [Request(prompt=prompt, slot=BASE, sampling=GREEDY, seed=0) for prompt in told],
        rows_per_batch=max(1, _TOKENS_PER_BATCH // max(tokens)),
    )
    recall = score_recall(
        judge_answers(
            judge,
            [
                replace(continuation.answer, prompt=prompt)
                for prompt, continuation in zip(prompts, continuations, strict=True)
            ],
        )
    )
    if recall.value is None:
        return _not_measured(name, "none of the answers could be judged")
    added = [
        count - _count_tokens(base, prompt) for count, prompt in zip(tokens, prompts, strict=True)
    ]
    return Floor(name=name, recall=recall, context_tokens=fmean(added))


def _why_not(base: BaseModel, tokens: int, prompts: int) -> str | None:
    """Return why prompts of which the longest has so many tokens are not asked, or None."""
    needed = tokens + GREEDY.max_new_tokens
    if needed > base.context_tokens:
        return (
            f"prompt and answer need {needed:,} tokens, and {base.name} reads at most "
            f"{base.context_tokens:,}"
        )
    if tokens * prompts > _MOST_TOKENS:
        return (
            f"{prompts:,} prompts of up to {tokens:,} tokens are more than the "
            f"{_MOST_TOKENS:,} tokens that a comparison may take"
        )
    return None


def _count_tokens(base: BaseModel, prompt: Prompt) -> int:
    return len(base.encode_prompt(prompt.text, prompt.style))


def _not_measured(name: FloorName, reason: str) -> Floor:
    return Floor(name=name, recall=NOT_MEASURED, context_tokens=None, reason=reason)
