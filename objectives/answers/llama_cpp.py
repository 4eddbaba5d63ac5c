"""Greedy answers of llama.cpp itself, by the package `xllamacpp`, with an adapter or without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import torch

from data.prompts import Prompt
from data.recipes import GREEDY
from objectives.answers.encode import encode_prompts
from objectives.answers.endings import Endings
from objectives.answers.request import Continuation
from objectives.models.base import BaseModel, ModelError
from objectives.models.gguf.ggml_types import require_xllamacpp

# How many prompts are answered at once, each with a part of the context of its own.
_PARALLEL = 8
# llama.cpp counts a context in such steps.
_CONTEXT_STEP = 256


def answer_with_llama_cpp(
    base: BaseModel,
    model: Path,
    prompts: Sequence[Prompt],
    *,
    adapter: Path | None = None,
    max_new_tokens: int = GREEDY.max_new_tokens,
) -> list[Continuation]:
    """Return llama.cpp's greedy continuation of every prompt, ended and cut as all others are.

    Prompts are given as the base's own token ids, for llama.cpp may split text otherwise. Keys and
    values are kept as fp32, so that weights alone make a difference to transformers.

    Args:
        base: Whose tokenizer the model has; its weights are not used.
        model: A `.gguf` file of it.
        prompts: What to ask.
        adapter: A GGUF adapter; None asks the model itself.
        max_new_tokens: The longest answer in tokens.

    Raises:
        ModelError: If `xllamacpp` is not installed, llama.cpp cannot load a file, a prompt with
            its answer exceeds the model's context, or the study bans words.
    """
    xllamacpp = require_xllamacpp()
    if base.token_ids.banned:
        raise ModelError("tokens.bad_words: llama.cpp cannot ban them; ask it without")
    token_ids = encode_prompts(base, ((prompt, max_new_tokens) for prompt in prompts))
    if not prompts:
        return []
    longest = max(map(len, token_ids.values())) + max_new_tokens
    server = _serve(xllamacpp, model, adapter, context=longest)
    replies = _post(
        f"{server.listening_address}/completion",
        {
            "prompt": [list(token_ids[prompt]) for prompt in prompts],
            "n_predict": max_new_tokens,
            "temperature": 0.0,
            "return_tokens": True,
            "cache_prompt": False,
        },
    )
    endings = Endings(base)
    return [
        endings.continuation(prompt, endings.trim(reply["tokens"], max_new_tokens, prompt.style))
        for prompt, reply in zip(
            prompts, sorted(replies, key=lambda reply: reply["index"]), strict=True
        )
    ]


def _post(address: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the replies to one or several prompts.

    Only over its address, on this machine alone, does the server say which tokens it generated:
    its function in Python leaves out those of half a letter.
    """
    request = Request(
        address,
        data=json.dumps(asked).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        # Whatever proxy the environment names is none for this machine itself.
        with build_opener(ProxyHandler({})).open(request) as response:
            replies = json.load(response)
    except HTTPError as error:
        said = error.read().decode(errors="replace")
        raise ModelError(f"llama.cpp: it gave no answers: {said}") from error
    return replies if isinstance(replies, list) else [replies]


def _serve(xllamacpp: Any, model: Path, adapter: Path | None, *, context: int) -> Any:
    """Return llama.cpp with a model and an adapter loaded, in this process."""
    for path in (model, adapter):
        if path is not None and not path.is_file():
            raise ModelError(f"llama.cpp: there is no file {str(path)!r}")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    if adapter is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    settings.n_parallel = _PARALLEL
    settings.n_ctx = _PARALLEL * (-(-context // _CONTEXT_STEP) * _CONTEXT_STEP)
    settings.fit_params = False  # the context is known
    settings.warmup = False
    settings.verbosity = -1
    settings.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.cpuparams.n_threads = torch.get_num_threads()
    try:
        return xllamacpp.Server(settings)
    except RuntimeError as error:
        raise ModelError(
            f"llama.cpp: {str(model)!r}, or an adapter for it, cannot be loaded: {error}"
        ) from error
