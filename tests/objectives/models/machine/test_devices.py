"""Devices and threads: what is there is used, what is not there is explained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from objectives.models.base import ModelError
from objectives.models.machine import devices


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_device_that_is_not_there_is_explained() -> None:
    devices.check_device("cpu")
    with pytest.raises(ModelError, match=r"device: 'cuda:9' is not there; torch can use .*cpu"):
        devices.check_device("cuda:9")


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 6), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1)],
)
def test_a_container_uses_the_cores_it_may(
    monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda _: limit)
    assert devices.available_cores() == cores


def test_threads_are_those_asked_for_or_one_for_each_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "available_cores", lambda: 2)
    devices.use_threads(1)
    assert torch.get_num_threads() == 1
    devices.use_threads(None)
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(devices, "available_cores", lambda: 1)
    devices.use_threads(None)
    assert torch.get_num_threads() == 2, "the person's own setting is kept"
