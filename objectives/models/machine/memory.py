"""Does work in smaller parts where it does not fit the memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

Result = TypeVar("Result")

# What torch's CPU allocator and CUDA's libraries say in an error of another type.
_MESSAGES = (
    "not enough memory",
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

_tokens_that_fit: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def release_memory() -> None:
    """Give back what a failed pass left behind; call it outside of the `except` clause."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def with_rows_that_fit(
    model: nn.Module, most: int, work: Callable[[int], Result], *, row_tokens: int
) -> Result:
    """Return `work(rows)` with as many rows per pass, at most `most`, as fit the memory.

    The number is halved until it fits. As many tokens are remembered for the model: a few long
    rows that did not fit say nothing against many short ones.

    Args:
        model: What reads the rows.
        most: The most rows of a pass.
        work: Does all of it, with so many rows per pass.
        row_tokens: The most tokens of a row, with what is generated after it.

    Raises:
        torch.OutOfMemoryError: If a single row does not fit; on a CPU a RuntimeError.
    """
    rows = min(most, max(1, _tokens_that_fit.get(model, most * row_tokens) // row_tokens))
    while True:
        try:
            return work(rows)
        except (RuntimeError, MemoryError) as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
        rows //= 2
        _tokens_that_fit[model] = rows * row_tokens
        release_memory()
