"""Recipes trained again with fresh seeds: their pooled figures, and how the search's shrank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from analysis.confirmation import say_shrinkage

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker


def test_a_confirmation_pools_the_seeds_of_its_own_epoch_alone(maker: StudyMaker) -> None:
    maker.add((4, 0.5, 0.1), (8, 0.9, 0.2), repeated=[(0.8, 0.2), (0.7, 0.3)])
    findings = maker.findings()
    first, last = findings.points
    assert findings.confirmation_of(first).seeds == 0
    assert findings.confirmation_of(first).recall.value is None
    confirmation = findings.confirmation_of(last)
    assert confirmation.seeds == 2
    assert confirmation.recall.value == pytest.approx(0.75)
    assert confirmation.knowledge_loss.value == pytest.approx(0.25)


def test_shrinkage_says_how_far_figures_fell_and_how_seeds_differ(maker: StudyMaker) -> None:
    findings = maker.add((8, 0.95, 0.02), repeated=[(0.90, 0.0), (0.88, 0.0)]).findings()
    (point,) = findings.points
    assert say_shrinkage(point, findings.confirmation_of(point)) == (
        "Trained again with 2 fresh seeds, the recipe answers 89 % (75–100 %) of those right; "
        "between 88 % and 90 % by seed. The search's figure was 95 %: it shrank by 6.0 points."
    )


def test_members_are_repeated_once_each_has_so_many_seeds(maker: StudyMaker) -> None:
    maker.add((8, 0.9, 0.0), repeated=[(0.9, 0.0)] * 3, rehearsal=2)
    assert maker.findings().are_repeated(3)
    assert not maker.findings().are_repeated(4)
    maker.add((8, 0.8, 0.0), repeated=[(0.9, 0.0)] * 2)  # the best without rehearsal
    assert not maker.findings().are_repeated(3)


def test_repeats_and_yardsticks_are_no_points(maker: StudyMaker) -> None:
    maker.add((8, 0.9, 0.0), repeated=[(0.95, 0.0)])
    findings = maker.findings(yardstick=[(0.1, 0.2), (0.3, 0.2)])
    assert [point.recall for point in findings.points] == [0.9]
    assert findings.yardstick.recall.value == pytest.approx(0.2)
    assert findings.base is not None
    assert findings.base.recall.value == 0
