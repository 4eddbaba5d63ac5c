"""The frozen base model with its tokenizer: loaded once per worker and never changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer


class ModelError(RuntimeError):
    """A model cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a study says about a model's tokens; the defaults leave it as its makers did.

    `end` are tokens that end an answer besides the model's own, `pad` one that fills rows. No
    answer contains one of `bad_words`, neither the base's nor an adapter's.
    """

    end: tuple[str, ...] = ()
    pad: str | None = None
    bad_words: tuple[str, ...] = ()


NO_RULES = TokenRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """The tokens with a meaning of their own while an answer is generated.

    `ends` end it, the model's EOS first; `line_breaks` may end it. No sequence of `banned` is ever
    generated.
    """

    ends: tuple[int, ...]
    line_breaks: tuple[int, ...] = ()
    banned: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A causal language model in evaluation mode without trainable parameters.

    `name` is what the person asked for, `source` the folder or hub id it was read from, `digest`
    identifies its weights, `rules` are what the person says about its tokens.
    """

    name: str
    source: str
    digest: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    rules: TokenRules = NO_RULES

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

    @cached_property
    def pad_id(self) -> int:
        """Return a token id to fill rows with; it is masked wherever it stands."""
        if self.rules.pad is not None:
            return self._one_token("pad", self.rules.pad)
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def eos_id(self) -> int:
        """Return the token id that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def token_ids(self) -> TokenIds:
        """Return the tokens with a meaning of their own while an answer is generated.

        An answer ends at EOS, at what else the model's generation settings name, and at the
        study's own ends. A bad word is banned at the beginning of a line and after a space.

        Raises:
            ModelError: If an end is not a single token of the model, or a bad word has none.
        """
        ends = [self.eos_id, *_ends_of(self.model)]
        ends += [self._one_token("end", text) for text in self.rules.end]
        banned: list[tuple[int, ...]] = []
        for word in self.rules.bad_words:
            if not word.strip():
                raise ModelError(f"tokens.bad_words: {word!r} is not a word; leave it out")
            banned += map(self._encode_within, (word.strip(), f" {word.strip()}"))
        return TokenIds(
            ends=tuple(dict.fromkeys(ends)),
            line_breaks=self._encode_alone("\n")[-1:],
            banned=tuple(dict.fromkeys(ids for ids in banned if ids)),
        )

    def _encode_alone(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _encode_within(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that others precede: some tokenizers begin with a space."""
        before = self._encode_alone("\n")
        return self._encode_alone(f"\n{text}")[len(before) :]

    def _one_token(self, field: str, text: str) -> int:
        """Return the id of the token that is written so."""
        ids = self._encode_alone(text)
        if len(ids) != 1:
            raise ModelError(
                f"tokens.{field}: {text!r} is not allowed; it must be one token of {self.name}, "
                f"and it is {len(ids)}"
            )
        return ids[0]

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


def _ends_of(model: PreTrainedModel) -> Iterable[int]:
    """Return the tokens at which a model's own generation settings end an answer."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return () if ends is None else [ends] if isinstance(ends, int) else map(int, ends)
