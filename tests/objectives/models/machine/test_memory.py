"""Work that does not fit the memory is done in smaller parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from objectives.models.machine.memory import is_out_of_memory, with_rows_that_fit


def fails_above(limit: int, tried: list[int]) -> Callable[[int], int]:
    def work(rows: int) -> int:
        tried.append(rows)
        if rows > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    return work


def test_rows_are_halved_until_they_fit_and_stay_so_for_the_model() -> None:
    model, tried = nn.Identity(), list[int]()
    work = fails_above(70, tried)
    assert with_rows_that_fit(model, 512, work, row_tokens=10) == 64
    assert with_rows_that_fit(model, 512, work, row_tokens=10) == 64
    assert with_rows_that_fit(model, 16, work, row_tokens=10) == 16
    assert with_rows_that_fit(nn.Identity(), 70, work, row_tokens=10) == 70
    assert tried == [512, 256, 128, 64, 64, 16, 70]


def test_rows_that_were_too_long_leave_room_for_many_short_ones() -> None:
    model, tried = nn.Identity(), list[int]()
    # Whole contexts first: 4 rows of 650 tokens fit. Those are 57 of 45 tokens.
    assert with_rows_that_fit(model, 512, fails_above(6, tried), row_tokens=650) == 4
    assert with_rows_that_fit(model, 512, fails_above(60, tried), row_tokens=45) == 57
    # Rows longer than all that fitted are tried one by one.
    assert with_rows_that_fit(model, 512, fails_above(1, tried), row_tokens=5000) == 1
    assert tried == [512, 256, 128, 64, 32, 16, 8, 4, 57, 1]


def test_a_single_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        with_rows_that_fit(nn.Identity(), 4, fails_above(0, []), row_tokens=1)


def test_other_errors_are_not_taken_for_full_memory() -> None:
    tried: list[int] = []

    def work(rows: int) -> None:
        tried.append(rows)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        with_rows_that_fit(nn.Identity(), 4, work, row_tokens=1)
    assert tried == [4]


def test_the_cpu_allocators_message_counts() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling it"))
    assert not is_out_of_memory(ValueError("not enough memory"))
