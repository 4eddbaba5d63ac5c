"""Divergence: how far an adapter's next tokens are from the base's, where the base answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from objectives.answers.batches import batch_rows
from objectives.answers.encode import encode_prompts
from objectives.answers.following import logits_after
from objectives.answers.request import BASE, AdapterRouter, Continuation
from objectives.models.base import BaseModel
from objectives.models.machine.memory import with_rows_that_fit

_ROWS_PER_BATCH = 64


@torch.inference_mode()
def mean_kl_nats(
    base: BaseModel,
    references: Sequence[Continuation],
    *,
    slot: int,
    router: AdapterRouter,
) -> float | None:
    """Return the mean Kullback-Leibler divergence of an adapter from the base, in nats per token.

    KL(base || adapter) of the distributions of the next token, over all tokens of the base's own
    answers: 0 for an adapter that changes nothing, higher the more it says otherwise. None without
    any token.

    Args:
        base: The model.
        references: The untouched base's continuations.
        slot: The adapter.
        router: Where it is.
    """
    prompts = encode_prompts(base, ((each.answer.prompt, 0) for each in references))
    rows, parts = [], []
    for reference in references:
        if reference.token_ids:
            prompt = prompts[reference.answer.prompt]
            rows.append(prompt + reference.token_ids[:-1])
            parts.append(slice(len(prompt) - 1, None))
    if not rows:
        return None

    def sum_with(most_rows: int) -> tuple[float, int]:
        total, tokens = 0.0, 0
        for batch in batch_rows(rows, [slot] * len(rows), most_rows):
            logs = []
            for reader in (BASE, slot):
                logits, places = logits_after(
                    base,
                    [rows[row] for row in batch],
                    [reader] * len(batch),
                    [parts[row] for row in batch],
                    router,
                )
                logs.append(logits.log_softmax(dim=-1)[places])
            before, after = logs
            divergences = (before.exp() * (before - after)).sum(dim=-1)
            total += float(divergences.double().sum())
            tokens += len(divergences)
        return total, tokens

    total, tokens = with_rows_that_fit(
        base.model, _ROWS_PER_BATCH, sum_with, row_tokens=max(map(len, rows))
    )
    return total / tokens
