"""Answers against the accepted texts: a table of hard cases, and what holds for any text."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.matching import match_answer

_GROUPS = tomllib.loads(
    (Path(__file__).parent / "matching_cases.toml").read_text(encoding="utf-8")
)["group"]
_LABEL_OF_LIST = {"right": "correct", "wrong": "incorrect", "not_attempted": "not_attempted"}
_CASES = [
    pytest.param(
        group["question"], answer, group["accepted"], label, id=f"{group['name']}: {answer[:60]!a}"
    )
    for group in _GROUPS
    for listed, label in _LABEL_OF_LIST.items()
    for answer in group.get(listed, [])
]


@pytest.mark.parametrize(("question", "answer", "accepted", "label"), _CASES)
def test_hard_cases_get_their_label(
    question: str, answer: str, accepted: list[str], label: str
) -> None:
    assert match_answer(question, answer, accepted) == label
