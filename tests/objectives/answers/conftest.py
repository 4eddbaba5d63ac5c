"""Prompts of many lengths for the talking model."""

from __future__ import annotations

import random

import pytest

from data.prompts import Prompt


@pytest.fixture(scope="session")
def prompts() -> tuple[Prompt, ...]:
    """Return twelve prompts of two to eleven tokens, some of equal length."""
    draw = random.Random(0)
    questions = [
        "".join(f" w{draw.randrange(24)}" for _ in range(draw.randint(1, 9))) + "?"
        for _ in range(12)
    ]
    return tuple(
        Prompt(
            text=question + "\n",
            style="plain",
            phrasing="probe",
            subject=f"subject {number}",
            question=question,
            accepted=("w1",),
        )
        for number, question in enumerate(questions)
    )
