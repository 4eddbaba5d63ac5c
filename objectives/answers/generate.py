"""Free generation: the answers of many adapters to many prompts under many sampling settings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from data.recipes import Sampling
from objectives.answers.beams import decode_by_beams
from objectives.answers.contrastive import decode_contrastively
from objectives.answers.decode import Opening, decode
from objectives.answers.encode import encode_prompts
from objectives.answers.endings import Endings
from objectives.answers.request import AdapterRouter, Continuation, Request, UntouchedBase
from objectives.answers.sampling import draw_uniforms
from objectives.models.base import BaseModel

# Measured on a CPU with a small model and short prompts: more rows no longer fit its caches, fewer
# leave it idle. A large model may need fewer to fit its memory.
_ROWS_PER_BATCH = 512


def generate(
    base: BaseModel,
    requests: Sequence[Request],
    *,
    router: AdapterRouter | None = None,
    rows_per_batch: int = _ROWS_PER_BATCH,
) -> list[Continuation]:
    """Return what is generated for every request, in their order.

    An answer depends on its own request alone, up to the rounding of floating point numbers.
    Generation stops at EOS, at the sampling's `max_new_tokens`, or once what follows would be cut
    from the answer. Requests that must have the same answer are computed once.

    Args:
        base: The model.
        requests: What to ask.
        router: Where the adapters are; None if only the untouched base (slot -1) is asked.
        rows_per_batch: The most rows that the model reads at once.

    Raises:
        ModelError: If a prompt has no tokens, or with its answer exceeds the model's context.
        ValueError: If an adapter is asked and there is no router.
    """
    prompt_ids = encode_prompts(base, ((r.prompt, r.sampling.max_new_tokens) for r in requests))
    numbers_of: dict[Hashable, list[int]] = {}
    for number, request in enumerate(requests):
        numbers_of.setdefault(_what_decides(request), []).append(number)
    asked = list(numbers_of.values())

    endings = Endings(base)
    token_ids_of: dict[int, tuple[int, ...]] = {}
    for decode_rows in (decode, decode_contrastively, decode_by_beams):
        own = [n for n in asked if _decoder_of(requests[n[0]].sampling) is decode_rows]
        generated = decode_rows(
            base,
            [
                _open(requests[numbers[0]], prompt_ids[requests[numbers[0]].prompt])
                for numbers in own
            ],
            router=router or UntouchedBase(),
            endings=endings,
            rows_per_batch=rows_per_batch,
        )
        for numbers, token_ids in zip(own, generated, strict=True):
            token_ids_of.update(dict.fromkeys(numbers, token_ids))
    return [
        endings.continuation(request.prompt, token_ids_of[number])
        for number, request in enumerate(requests)
    ]


def _decoder_of(sampling: Sampling) -> Callable[..., list[tuple[int, ...]]]:
    if sampling.num_beams > 1:
        return decode_by_beams
    return decode_contrastively if sampling.is_contrastive else decode


def _what_decides(request: Request) -> Hashable:
    """Return all that the generated tokens depend on."""
    is_chat = request.prompt.style == "chat"  # where an answer has ended depends on it
    greedy = request.prompt.text, is_chat, request.slot, request.sampling.what_decides
    if not request.sampling.do_sample:
        return greedy
    return *greedy, request.prompt.id, request.seed, request.sequence


def _open(request: Request, prompt_ids: tuple[int, ...]) -> Opening:
    sampling, seed, prompt_id = request.sampling, request.seed, request.prompt.id
    nothing = np.empty(0)

    def draw(purpose: str) -> NDArray[np.float64]:
        if request.sequence:
            purpose = f"{purpose}/{request.sequence}"
        return draw_uniforms(seed, prompt_id, sampling.max_new_tokens, purpose=purpose)

    return Opening(
        prompt_ids=prompt_ids,
        slot=request.slot,
        sampling=sampling,
        uniforms=draw("") if sampling.do_sample else nothing,
        chances=draw("/xtc") if sampling.do_sample and sampling.xtc_probability else nothing,
        style=request.prompt.style,
    )
