"""The frozen base model with its tokenizer: loaded once per worker and never changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from data.prompts import ChatFrame, PromptStyle


class ModelError(RuntimeError):
    """A model cannot be used; the message says why and what to do."""


# What broken files and configurations, missing packages and misfitting shapes raise.
LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    UnpicklingError,
)


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

# What transformers takes for the length of a text where a tokenizer names none is 10**30.
_ABSURD_LENGTH = 10**9


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

    `name` is what the person asked for, `source` the folder, file or hub id it was read from,
    `digest` identifies its weights, `revision` is the commit of a hub repository. `rules` are what
    the person says about its tokens. `chat` is how its chat template puts a question, and
    `chat_ends` are the tokens with which that ends an answer; None and none without a template.
    """

    name: str
    source: str
    digest: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    rules: TokenRules = NO_RULES
    revision: str | None = None
    chat: ChatFrame | None = None
    chat_ends: tuple[int, ...] = ()

    @property
    def device(self) -> torch.device:
        """Return where inputs must be placed."""
        return input_device(self.model)

    @property
    def precision(self) -> str:
        """Return the type of its weights, for example "float32"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def hidden_size(self) -> int:
        """Return how many numbers stand for a token between two layers."""
        return int(self.model.config.get_text_config().hidden_size)

    @cached_property
    def context_tokens(self) -> int:
        """Return the longest text the model can read, in tokens.

        Where its configuration does not say, as for models without trained positions, it is what
        the tokenizer says.

        Raises:
            ModelError: If neither does.
        """
        if (stated := context_tokens_of(self.model.config)) is not None:
            return stated
        # One that was never given is an absurdly large number.
        if (tokens := int(self.tokenizer.model_max_length)) < _ABSURD_LENGTH:
            return tokens
        raise ModelError(
            f"model: the configuration of {self.name!r} does not say how many tokens it can read; "
            "write model_max_length into its tokenizer_config.json"
        )

    @cached_property
    def vocabulary(self) -> int:
        """Return how many token ids the model knows, from 0 on: the rows of its embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @cached_property
    def pad_id(self) -> int:
        """Return a token id to fill rows with; it is masked wherever it stands.

        That is EOS where there is no pad token, or one that was added to the tokenizer alone.
        """
        if self.rules.pad is not None:
            return self._one_token("pad", self.rules.pad)
        pad = self.tokenizer.pad_token_id
        return self.eos_id if pad is None or pad >= self.vocabulary else int(pad)

    @cached_property
    def eos_id(self) -> int:
        """Return the token id that ends a text: the tokenizer's, else the study's first end.

        Raises:
            ModelError: If there is neither.
        """
        if (eos := self.tokenizer.eos_token_id) is not None:
            return int(eos)
        if self.rules.end:
            return self._one_token("end", self.rules.end[0])
        raise ModelError(
            f"model: the tokenizer of {self.name!r} has no end-of-text token; name one of its "
            "tokens in the study file, as tokens.end"
        )

    @cached_property
    def token_ids(self) -> TokenIds:
        """Return the tokens with a meaning of their own while an answer is generated.

        An answer ends at EOS, at what else the model's generation settings name, at what its chat
        template ends an answer with, and at the study's own ends. A bad word is banned at the
        beginning of a line and after a space.

        Raises:
            ModelError: If an end is not a single token of the model, or a bad word has none.
        """
        ends = [self.eos_id, *_ends_of(self.model), *self.chat_ends]
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
        ids = self._encode_alone(f"\n{text}")
        # A tokenizer may also join the line break with what follows it.
        return ids[len(before) :] if ids[: len(before)] == before else self._encode_alone(text)

    def _one_token(self, field: str, text: str) -> int:
        """Return the id of the token that is written so."""
        added = self.tokenizer.get_added_vocab()
        if text in added:
            ids: tuple[int, ...] = (int(added[text]),)
        else:
            ids = self._encode_alone(text)
            if len(ids) > 1:  # one of them may be a space put before the text
                ids = self._encode_within(text)
        if len(ids) != 1:
            raise ModelError(
                f"tokens.{field}: {text!r} is not allowed; it must be one token of {self.name}, "
                f"and it is {len(ids)}"
            )
        if ids[0] >= self.vocabulary:
            raise ModelError(
                f"tokens.{field}: {text!r} is not allowed; {self.name} knows tokens below "
                f"{self.vocabulary}, and this is {ids[0]}; name another"
            )
        return ids[0]

    def encode_prompt(self, text: str, style: PromptStyle = "plain") -> list[int]:
        """Return the token ids a continuation follows, as the tokenizer itself begins a text.

        Some tokenizers put BOS first, some do not; an EOS that one puts last is left out.

        Args:
            text: What is read.
            style: In what it is asked. What a chat template wrote is read as it stands, as
                servers read it: it has its own beginning.

        Raises:
            ModelError: If the model does not know a token: on a GPU reading it would end the
                process.
        """
        ids = list(self.tokenizer(text, add_special_tokens=style != "chat").input_ids)
        ids = ids[:-1] if ids and ids[-1] == self.eos_id else ids
        if ids and max(ids) >= self.vocabulary:
            raise ModelError(
                f"text: {text!r} has the token {max(ids)}; {self.name} knows tokens below "
                f"{self.vocabulary}, and its tokenizer has more; leave out what is written so"
            )
        return ids

    def encode_document(self, text: str) -> list[int]:
        """Return the token ids of a training text: as a prompt, and EOS."""
        return [*self.encode_prompt(text), self.eos_id]

    def decode(self, ids: list[int]) -> str:
        """Return generated token ids as text, without special tokens.

        An id that the tokenizer does not know, as the last rows of many embeddings, is no text.
        Spaces are left as they were generated, whatever the tokenizer would tidy up.
        """
        known = [token for token in ids if token < self._named_ids]
        return str(
            self.tokenizer.decode(
                known, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    @cached_property
    def _named_ids(self) -> int:
        """Return the first id after all that the tokenizer has a name for."""
        return int(max(self.tokenizer.get_vocab().values())) + 1


def context_tokens_of(config: PretrainedConfig) -> int | None:
    """Return the longest text that a model can read, in tokens; None if it does not say."""
    text = config.get_text_config()
    stated = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((tokens for tokens in stated if isinstance(tokens, int)), None)


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model's inputs must be placed: with its embeddings.

    Of a model on several devices the logits come back to it, too.
    """
    return torch.device(model.get_input_embeddings().weight.device)


def cache_argument(model: PreTrainedModel) -> str:
    """Return how a model's forward calls its key/value cache.

    It is `past_key_values` before transformers 5.24, and `cache` from then on.
    """
    return "cache" if "cache" in _parameters(type(model).forward) else "past_key_values"


def takes_positions(model: PreTrainedModel) -> bool:
    """Return whether a model is told each token's position.

    Others count columns, hidden ones too, as MPT does for its distances.
    """
    return "position_ids" in _parameters(type(model).forward)


@cache
def _parameters(forward: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _ends_of(model: PreTrainedModel) -> Iterable[int]:
    """Return the tokens at which a model's own generation settings end an answer."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return () if ends is None else [ends] if isinstance(ends, int) else map(int, ends)
