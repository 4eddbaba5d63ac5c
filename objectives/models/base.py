"""The frozen base model with its tokenizer: loaded once per worker and never changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer


class ModelError(RuntimeError):
    """A model cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A causal language model in evaluation mode without trainable parameters.

    `name` is what the person asked for, `source` the folder or hub id it was read from, `digest`
    identifies its weights.
    """

    name: str
    source: str
    digest: str
    model: PreTrainedModel
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """Return where inputs must be placed."""
        return torch.device(self.model.device)

    @property
    def precision(self) -> str:
        """Return the type of its weights, for example "float32"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def context_tokens(self) -> int:
        """Return the longest text the model can read, in tokens."""
        return int(self.model.config.max_position_embeddings)

    @property
    def pad_id(self) -> int:
        """Return a token id to fill rows with; it is masked wherever it stands."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def eos_id(self) -> int:
        """Return the token id that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Return the token that ends a text, and the one that breaks a line."""
        *_, line_break = self.tokenizer("\n", add_special_tokens=False).input_ids or [self.eos_id]
        return self.eos_id, int(line_break)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the token ids a continuation follows, as the tokenizer itself begins a text.

        Some tokenizers put BOS first, some do not; an EOS that one puts last is left out.
        """
        ids = list(self.tokenizer(text).input_ids)
        return ids[:-1] if ids and ids[-1] == self.eos_id else ids

    def encode_document(self, text: str) -> list[int]:
        """Return the token ids of a training text: as a prompt, and EOS."""
        return [*self.encode_prompt(text), self.eos_id]

    def decode(self, ids: list[int]) -> str:
        """Return generated token ids as text, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def cache_argument(model: PreTrainedModel) -> str:
    """Return how a model's forward calls its key/value cache.

    It is `past_key_values` before transformers 5.24, and `cache` from then on.
    """
    return "cache" if "cache" in _parameters(type(model).forward) else "past_key_values"


@cache
def _parameters(forward: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
