"""What is asked of an adapter, what it generated, and how its adapter reaches the right rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from data.measurements import Answer
from data.prompts import Prompt
from data.recipes import Sampling

if TYPE_CHECKING:  # a judge behind a server needs no torch
    from torch import nn

BASE = -1  # the slot of the untouched base


class AskingStopped(Exception):
    """Asking ended before its end because it was to stop; nothing that it asked is kept."""


def never() -> bool:
    """Return False: asking goes on to its end."""
    return False


@contextmanager
def stoppable(model: nn.Module, should_stop: Callable[[], bool]) -> Iterator[None]:
    """During it no forward pass of a model begins once `should_stop` says so.

    It is asked before every pass, whoever asks for one: that is often enough, for a pass takes
    seconds at most, and costs nothing beside it. Whatever was read is let go of, and the model and
    its adapters are as they were before.

    Raises:
        AskingStopped: Where a pass would have begun.
    """

    def look(_model: nn.Module, _inputs: object) -> None:
        refuse_to_go_on(should_stop)

    handle = model.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def refuse_to_go_on(should_stop: Callable[[], bool]) -> None:
    """Do nothing unless asking is to stop.

    Raises:
        AskingStopped: If it is.
    """
    if should_stop():
        raise AskingStopped("asking was stopped")


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
