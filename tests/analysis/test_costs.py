"""What a study cost, added up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.costs import Total, add_costs

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker


def test_costs_are_added_up_and_apart_by_ending(maker: StudyMaker) -> None:
    # An epoch trains 1,000 tokens and takes 2.5 s; a measurement generates 100 tokens.
    maker.add((4, 0.5, 0.1), (8, 0.6, 0.1)).add((4, 0.0, 0.0), state="pruned")
    costs = add_costs(maker.add((2, 0.0, 0.0), state="running").study())

    assert costs.total == Total(
        trials=2, trained_tokens=12_000, generated_tokens=300, seconds=30.0
    )
    assert costs.by_state["pruned"] == Total(
        trials=1, trained_tokens=4000, generated_tokens=100, seconds=10.0
    )
    assert costs.by_state["failed"].trials == 0


def test_a_study_without_trials_cost_nothing(maker: StudyMaker) -> None:
    assert add_costs(maker.study()).total == Total(
        trials=0, trained_tokens=0, generated_tokens=0, seconds=0
    )
