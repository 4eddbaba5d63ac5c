"""Rungs of a large model ask as much as training between them costs, others ask everything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from data.facts import Fact
from data.scenarios import Scenario
from objectives.models.base import BaseModel
from study.pruning import Rungs
from study.rung_share import rung_share_of
from study.spec import StudySpec


class Large:
    """Stands for a model of 24 layers of 2,048: 1.2 thousand million parameters."""

    hidden_size = 2048
    chat = None
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=24))
    )

    def encode_prompt(self, text: str, style: str) -> list[str]:
        return ["token"] * 16


@pytest.fixture
def large() -> BaseModel:
    return cast(BaseModel, Large())


def facts_only(count: int) -> Scenario:
    """Return facts of three wordings each, which are 12 prompts, and no probes."""
    return Scenario(
        facts=tuple(
            Fact(question=f"{n}?", answer="a", novel_validation=("x?", "y?", "z?"))
            for n in range(count)
        ),
        probes=(),
        known_facts=(),
    )


RUNGS = Rungs(first_rung_tokens=1000, spacing=1.5)


def test_asking_at_a_rung_costs_what_the_training_before_it_does(large: BaseModel) -> None:
    # 5 facts * 12 prompts * (16 read + 24 answered) = 2,400 against 2 * 0.5 * 1,000 trained.
    assert rung_share_of(StudySpec(), facts_only(5), large, RUNGS) == pytest.approx(0.4)
    assert rung_share_of(StudySpec(), facts_only(2), large, RUNGS) == 1
    assert rung_share_of(StudySpec(), facts_only(100), large, RUNGS) == pytest.approx(0.1)


def test_small_models_and_studies_without_rungs_ask_everything(
    large: BaseModel, pocket: BaseModel
) -> None:
    assert rung_share_of(StudySpec(), facts_only(5), pocket, RUNGS) == 1
    assert rung_share_of(StudySpec(), facts_only(5), large, None) == 1


def test_the_study_file_decides(large: BaseModel, pocket: BaseModel) -> None:
    spec = StudySpec(rung_share=0.3)
    assert rung_share_of(spec, facts_only(5), large, RUNGS) == 0.3
    assert rung_share_of(spec, facts_only(5), pocket, RUNGS) == 0.3
