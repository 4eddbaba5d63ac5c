"""What is asked of an adapter, what it generated, and how its adapter reaches the right rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from data.measurements import Answer
from data.prompts import Prompt
from data.recipes import Sampling

BASE = -1  # the slot of the untouched base


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt put to one adapter; slot -1 is the untouched base.

    `seed`, the prompt's id and `sequence`, which of several answers it is, fix the draws of a
    sampling that draws.
    """

    prompt: Prompt
    slot: int
    sampling: Sampling
    seed: int
    sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What was generated: the answer, and the raw token ids, with the EOS if it was produced."""

    answer: Answer
    token_ids: tuple[int, ...]


class AdapterRouter(Protocol):
    """Whatever holds adapters in slots beside a base model, such as a bank."""

    def answering(self, slot_of_entry: Sequence[int]) -> AbstractContextManager[None]:
        """Return a context within which a forward pass has one token for every slot given.

        Entry `i`, counting the tokens of a pass row after row, is read by the adapter of slot
        `slot_of_entry[i]`, or by the untouched base (-1).
        """


class UntouchedBase:
    """The router of a base model without adapters: every token must ask for slot -1."""

    def answering(self, slot_of_entry: Sequence[int]) -> AbstractContextManager[None]:
        """Return a context that changes nothing.

        Raises:
            ValueError: If a token asks for an adapter.
        """
        if asked := set(slot_of_entry) - {BASE}:
            raise ValueError(f"slot: {min(asked)} was asked without a router that has its adapter")
        return nullcontext()
