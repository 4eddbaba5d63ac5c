"""Greedy answers of adapters to prompts whose greedy answer by the base is known, at less cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from data.recipes import GREEDY
from objectives.answers.batches import batch_rows, pad_left
from objectives.answers.decode import Opening, decode
from objectives.answers.encode import encode_prompts
from objectives.answers.endings import Endings
from objectives.answers.generate import ROWS_PER_BATCH
from objectives.answers.request import AdapterRouter, Continuation, UntouchedBase
from objectives.models.base import BaseModel

# The most logits of one forward pass: 1 GiB in fp32. Unlike decoding, verifying needs those of
# every answer token, and a large vocabulary makes them the largest tensor of all.
_LOGITS_PER_PASS = 2**28


def verify_greedy(
    base: BaseModel,
    references: Sequence[Continuation],
    slots: Sequence[int],
    *,
    router: AdapterRouter | None = None,
    max_new_tokens: int = GREEDY.max_new_tokens,
    rows_per_batch: int = ROWS_PER_BATCH,
    on_rows_done: Callable[[int], None] | None = None,
) -> list[list[Continuation]]:
    """Return for every slot its greedy continuation of every reference's prompt, in their orders.

    They are what `generate` returns with greedy sampling. Each adapter reads prompt and reference
    in one forward pass; where every token is the one it would have chosen, the continuation is the
    reference. Others are decoded from the first token on that differs. So what an adapter left
    alone costs one pass, and nothing is ever assumed.

    Args:
        base: The model.
        references: Greedy continuations, usually the untouched base's own. Any others give the
            same result at greater cost.
        slots: The adapters to ask.
        router: Where the adapters are; None if only the untouched base (slot -1) is asked.
        max_new_tokens: The longest answer in tokens.
        rows_per_batch: The most rows that the model reads at once.
        on_rows_done: Called with the number of continuations that have become known, in all
            `len(slots) * len(references)`.

    Raises:
        ModelError: If a prompt with its answer exceeds the model's context.
        ValueError: If an adapter is asked and there is no router.
    """
    router = router or UntouchedBase()
    endings = Endings(base)
    greedy = replace(GREEDY, max_new_tokens=max_new_tokens)
    prompt_ids = encode_prompts(base, ((r.answer.prompt, max_new_tokens) for r in references))
    expected = [endings.trim(reference.token_ids, max_new_tokens) for reference in references]
    openings = [
        Opening(
            prompt_ids=prompt_ids[reference.answer.prompt.text],
            slot=slot,
            sampling=greedy,
            uniforms=np.empty(0),
            generated=token_ids,
        )
        for slot in slots
        for reference, token_ids in zip(references, expected, strict=True)
    ]
    followed = _follow(base, openings, router, rows_per_batch)

    def report(rows: Sequence[int]) -> None:
        if on_rows_done is not None:
            on_rows_done(len(rows))

    unfinished = [
        row
        for row, opening in enumerate(followed)
        if not endings.is_over(opening.generated, max_new_tokens)
    ]
    report(sorted(set(range(len(followed))) - set(unfinished)))
    decoded = decode(
        base,
        [followed[row] for row in unfinished],
        router=router,
        endings=endings,
        rows_per_batch=rows_per_batch,
        on_rows_done=report,
    )
    generated = [opening.generated for opening in followed]
    for row, token_ids in zip(unfinished, decoded, strict=True):
        generated[row] = token_ids
    rows = iter(generated)
    return [
        [_as_continuation(reference, next(rows), endings) for reference in references]
        for _ in slots
    ]


@torch.inference_mode()
def _follow(
    base: BaseModel, expected: Sequence[Opening], router: AdapterRouter, rows_per_batch: int
) -> list[Opening]:
    """Return each row with what it would generate: up to the first token that is not expected.

    That token is the row's own choice, and stands in the place of the expected one.
    """
    followed = list(expected)
    longest = max((len(row.generated) for row in expected), default=0)
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    rows_per_pass = min(rows_per_batch, max(1, _LOGITS_PER_PASS // max(1, longest * vocabulary)))
    read_ids = [row.read_ids[:-1] for row in expected]
    for batch in batch_rows(read_ids, [row.slot for row in expected], rows_per_pass):
        rows = [expected[number] for number in batch]
        padded = pad_left([read_ids[number] for number in batch], base)
        with router.answering([row.slot for row in rows]):
            logits = base.model(
                input_ids=padded.ids,
                attention_mask=padded.mask,
                position_ids=padded.positions,
                use_cache=False,
                logits_to_keep=max(len(row.generated) for row in rows),
            ).logits
        chosen = logits.argmax(dim=-1).tolist()  # (rows, tokens), the last of each row last
        for number, row, tokens in zip(batch, rows, chosen, strict=True):
            followed[number] = replace(row, generated=_agreed(row.generated, tokens))
    return followed


def _agreed(expected: tuple[int, ...], chosen: Sequence[int]) -> tuple[int, ...]:
    own = tuple(chosen[-len(expected) :])
    for step, (wanted, token) in enumerate(zip(expected, own, strict=True)):
        if token != wanted:
            return own[: step + 1]
    return expected


def _as_continuation(
    reference: Continuation, token_ids: tuple[int, ...], endings: Endings
) -> Continuation:
    if token_ids == reference.token_ids:
        return reference
    return endings.continuation(reference.answer.prompt, token_ids)
