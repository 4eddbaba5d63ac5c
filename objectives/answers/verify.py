"""Greedy answers of adapters to prompts whose greedy answer by the base is known, at less cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.recipes import GREEDY
from objectives.answers.decode import Opening, decode
from objectives.answers.encode import encode_prompts
from objectives.answers.endings import Endings
from objectives.answers.request import AdapterRouter, Continuation, UntouchedBase
from objectives.models.base import BaseModel

# Measured as for `generate`; reading drafts takes more memory per row.
_ROWS_PER_BATCH = 128


def verify_greedy(
    base: BaseModel,
    references: Sequence[Continuation],
    slots: Sequence[int],
    *,
    router: AdapterRouter | None = None,
    max_new_tokens: int = GREEDY.max_new_tokens,
    rows_per_batch: int = _ROWS_PER_BATCH,
) -> list[list[Continuation]]:
    """Return for every slot its greedy continuation of every reference's prompt, in their orders.

    They are what `generate` returns with greedy sampling. Each adapter reads prompt and reference
    in one forward pass; where every token is the one it would have chosen, the continuation is the
    reference. Others go on from the first token that differs. So an answer that an adapter left
    alone costs one pass instead of one per token, and nothing is assumed.

    Args:
        base: The model.
        references: Greedy continuations, usually the untouched base's own. Any others give the
            same result at greater cost.
        slots: The adapters to ask.
        router: Where the adapters are; None if only the untouched base (slot -1) is asked.
        max_new_tokens: The longest answer in tokens.
        rows_per_batch: The most rows that the model reads at once.

    Raises:
        ModelError: If a prompt with its answer exceeds the model's context.
        ValueError: If an adapter is asked and there is no router.
    """
    endings = Endings(base)
    prompt_ids = encode_prompts(base, ((r.answer.prompt, max_new_tokens) for r in references))
    # The last token is chosen after all others were read, so it need not be guessed.
    drafts = [
        endings.trim(r.token_ids, max_new_tokens, r.answer.prompt.style)[:-1] for r in references
    ]
    openings = [
        Opening(
            prompt_ids=prompt_ids[reference.answer.prompt],
            slot=slot,
            sampling=replace(GREEDY, max_new_tokens=max_new_tokens),
            uniforms=np.empty(0),
            draft=draft,
            style=reference.answer.prompt.style,
        )
        for slot in slots
        for reference, draft in zip(references, drafts, strict=True)
    ]
    generated = iter(
        decode(
            base,
            openings,
            router=router or UntouchedBase(),
            endings=endings,
            rows_per_batch=rows_per_batch,
        )
    )
    return [[_continue(endings, r, next(generated)) for r in references] for _ in slots]


def _continue(
    endings: Endings, reference: Continuation, token_ids: tuple[int, ...]
) -> Continuation:
    if token_ids == reference.token_ids:
        return reference
    return endings.continuation(reference.answer.prompt, token_ids)
