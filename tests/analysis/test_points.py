"""The points of a study, its front and the recommended member, worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from analysis.points import Point, Reference, front_points, recommend, study_points
from data.recipes import Sampling

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker

REFERENCE = Reference(recall=0.05, knowledge_loss=0.5)
WARM = Sampling(name="warm", temperature=0.7)


def where(points: tuple[Point, ...]) -> list[tuple[int, int]]:
    return [(point.trial, point.epoch) for point in points]


def test_every_rung_and_final_measurement_is_a_point_with_its_own_epochs(
    three_trials: StudyMaker,
) -> None:
    points = study_points(three_trials.study())

    assert where(points) == [(0, 4), (0, 8), (1, 4), (1, 8), (2, 4)]
    assert [point.recipe.epochs for point in points] == [4, 8, 4, 8, 4]
    assert [point.adapter for point in points[:2]] == [None, "adapters/0-8"]
    assert points[-1].state == "pruned"


def test_the_final_measurement_counts_under_both_samplings(maker: StudyMaker) -> None:
    points = study_points(maker.add((4, 0.5, 0.1), sampled=(WARM, 0.6)).study())

    assert [(point.sampling.name, point.recall) for point in points] == [
        ("greedy", 0.5),
        ("warm", 0.6),
    ]


@pytest.mark.parametrize(("recall", "loss"), [(None, 0.1), (0.5, None), (math.nan, 0.1)])
def test_a_measurement_without_both_objectives_is_not_a_point(
    maker: StudyMaker, recall: float | None, loss: float | None
) -> None:
    assert study_points(maker.add((4, recall, loss)).study()) == ()


def test_confirmations_are_not_points(maker: StudyMaker) -> None:
    study = maker.add((4, 0.5, 0.1), confirmed=(0.9, 0.0)).study()

    assert where(study_points(study)) == [(0, 4)]


def test_the_front_holds_what_no_other_point_beats_highest_recall_first(
    three_trials: StudyMaker,
) -> None:
    # (0.50, 0.20) is beaten by (0.85, 0.02); (0.04, 0.00) has too little recall to count.
    front = front_points(study_points(three_trials.study()), REFERENCE)

    assert where(front) == [(0, 8), (1, 8), (1, 4)]


@pytest.mark.parametrize(("recall", "loss"), [(0.05, 0.0), (0.9, 0.5), (0.0, 0.9)])
def test_a_point_on_or_behind_the_reference_is_not_on_the_front(
    maker: StudyMaker, recall: float, loss: float
) -> None:
    assert front_points(study_points(maker.add((4, recall, loss)).study()), REFERENCE) == ()


def test_of_equal_points_the_greedy_and_then_the_cheaper_one_is_kept(maker: StudyMaker) -> None:
    maker.add((8, 0.5, 0.1), sampled=(WARM, 0.5)).add((4, 0.5, 0.1))
    front = front_points(study_points(maker.study()), REFERENCE)

    assert [(point.trial, point.sampling.name) for point in front] == [(1, "greedy")]


def test_recommended_is_the_largest_recall_minus_loss_of_those_that_lose_at_most_a_tenth(
    three_trials: StudyMaker,
) -> None:
    # Trial 0 has 0.90 - 0.30; trial 1 has 0.85 - 0.02 after 8 epochs and less than 0.40 after 4.
    chosen = recommend(front_points(study_points(three_trials.study()), REFERENCE))

    assert chosen is not None
    assert (chosen.trial, chosen.epoch) == (1, 8)


def test_a_loss_of_exactly_a_tenth_is_accepted(maker: StudyMaker) -> None:
    front = front_points(
        study_points(maker.add((4, 0.6, 0.02), (8, 0.7, 0.10)).study()), REFERENCE
    )

    # 0.70 - 0.10 = 0.60 > 0.60 - 0.02 = 0.58
    assert recommend(front) == front[0]
    assert front[0].epoch == 8


def test_a_little_more_recall_does_not_pay_for_much_more_loss(maker: StudyMaker) -> None:
    front = front_points(
        study_points(maker.add((4, 0.94, 0.03), (8, 0.95, 0.08)).study()), REFERENCE
    )
    chosen = recommend(front)

    assert chosen is not None
    assert chosen.epoch == 4


def test_without_a_mild_member_the_largest_recall_minus_loss_is_recommended(
    maker: StudyMaker,
) -> None:
    # 0.90 - 0.40 = 0.50 < 0.80 - 0.20 = 0.60 > 0.50 - 0.15 = 0.35
    maker.add((4, 0.50, 0.15), (8, 0.80, 0.20), (16, 0.90, 0.40))
    chosen = recommend(front_points(study_points(maker.study()), REFERENCE))

    assert chosen is not None
    assert chosen.epoch == 8


def test_equal_recall_is_settled_by_the_lower_loss_and_then_by_fewer_tokens(
    maker: StudyMaker,
) -> None:
    maker.add((8, 0.6, 0.05)).add((8, 0.6, 0.02)).add((4, 0.6, 0.02))
    chosen = recommend(study_points(maker.study()))

    assert chosen is not None
    assert chosen.trial == 2


def test_an_empty_front_recommends_nothing() -> None:
    assert recommend(()) is None
