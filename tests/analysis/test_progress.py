"""How the front grows with the tokens that were trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from analysis.points import Reference
from analysis.progress import follow_hypervolume

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker

REFERENCE = Reference(recall=0.05, knowledge_loss=0.5)


def test_growth_is_the_covered_area_over_that_of_a_perfect_adapter(maker: StudyMaker) -> None:
    # Reference (0.05, 0.5): possible 0.95 * 0.5 = 0.475.
    # (0.55, 0.3) covers 0.5 * 0.2 = 0.1; (0.25, 0.0) adds 0.2 * 0.3 = 0.06, together 0.16.
    study = maker.add((4, 0.55, 0.3)).add((2, 0.25, 0.0)).study()
    first, second = follow_hypervolume(study, REFERENCE)

    assert (first.trained_tokens, second.trained_tokens) == (4000, 6000)
    assert first.share == pytest.approx(0.1 / 0.475)
    assert second.share == pytest.approx(0.16 / 0.475)


def test_a_later_rung_counts_only_the_tokens_since_the_earlier_one(maker: StudyMaker) -> None:
    steps = follow_hypervolume(maker.add((4, 0.1, 0.1), (8, 0.2, 0.1)).study(), REFERENCE)

    assert [step.trained_tokens for step in steps] == [4000, 8000]


def test_there_is_no_progress_without_points_or_without_room(three_trials: StudyMaker) -> None:
    study = three_trials.study()

    assert follow_hypervolume(study, Reference(recall=1.0, knowledge_loss=0.5)) == ()
    three_trials.trials.clear()
    assert follow_hypervolume(three_trials.study(), REFERENCE) == ()
