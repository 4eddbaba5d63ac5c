"""Successive halving on two objectives: hand-made rungs, and what must hold for any rung."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.points import Reference
from study.pruning import Rungs, SuccessiveHalving
from study.rung_vectors import RungVector, make_stamp, vectors_at_rung

PRUNER = SuccessiveHalving(
    reference=Reference(recall=0.05, knowledge_loss=0.5),
    reduction=3,
    minimum_entries=3,
)


def vector(recall: float, loss: float, *, rung: int = 0, is_last: bool = False) -> RungVector:
    return RungVector(
        rung=rung,
        epoch=4,
        trained_tokens=1000,
        recall=recall,
        knowledge_loss=loss,
        is_last=is_last,
        stamp=make_stamp(PRUNER.reference),
    )


@pytest.mark.parametrize(
    ("tokens", "rungs"),
    [(0, 0), (999, 0), (1000, 1), (1499, 1), (1500, 2), (2249, 2), (2250, 3), (100_000, 12)],
)
def test_rung_k_is_reached_after_first_times_spacing_to_the_k_tokens(
    tokens: int, rungs: int
) -> None:
    assert Rungs(first_rung_tokens=1000).rungs_reached(tokens) == rungs


def test_a_rung_with_too_few_entries_does_not_decide_among_those_inside_the_box() -> None:
    assert PRUNER.decide(vector(0.1, 0.4), [vector(0.9, 0.0)]).keep


def test_who_is_outside_the_box_needs_nobody_to_be_compared_with() -> None:
    assert "loses too much" in PRUNER.decide(vector(0.9, 0.6), []).reason
    assert PRUNER.decide(vector(0.0, 0.0), []).keep
    assert "still not answer more" in PRUNER.decide(vector(0.0, 0.0, rung=1), []).reason


def test_a_dominated_trial_is_pruned_at_the_first_deciding_rung() -> None:
    others = [vector(0.9, 0.01), vector(0.8, 0.02)]
    decision = PRUNER.decide(vector(0.3, 0.2), others)
    assert not decision.keep
    assert "place 3 of 3" in decision.reason


def test_an_adapter_that_did_nothing_is_spared_once_although_nothing_dominates_it() -> None:
    for others in (
        [vector(0.9, 0.1), vector(0.5, 0.05), vector(0.4, 0.02)],
        [vector(0.0, 0.0)] * 3,
        [vector(0.0, 0.9)] * 3,
    ):
        slow = PRUNER.decide(vector(0.0, 0.0), others)
        assert slow.keep
        assert "does not yet answer more than the base" in slow.reason
        idle = PRUNER.decide(vector(0.05, 0.0, rung=1), [replace(v, rung=1) for v in others])
        assert not idle.keep
        assert "does still not answer more" in idle.reason


def test_a_trial_that_lost_more_than_is_tolerated_is_pruned_even_with_the_best_recall() -> None:
    others = [vector(0.1, 0.4), vector(0.0, 0.0), vector(0.2, 0.6)]
    decision = PRUNER.decide(vector(0.9, 0.5), others)
    assert not decision.keep
    assert "loses too much (recall 0.90, knowledge loss 0.50)" in decision.reason


def test_only_those_inside_the_box_are_compared_with_each_other() -> None:
    outside = [vector(0.0, 0.0), vector(0.9, 0.9), vector(0.04, 0.1)]
    decision = PRUNER.decide(vector(0.1, 0.4), [*outside, vector(0.9, 0.1)])
    assert decision.keep
    assert "too few good trials" in decision.reason
    assert not PRUNER.decide(vector(0.1, 0.4), [*outside, *[vector(0.9, 0.1)] * 2]).keep


def test_a_front_member_inside_the_box_stays_whatever_its_place() -> None:
    # Six points on one front: only two places are kept, but all of them are best in some way.
    others = [vector(0.9 - 0.1 * i, 0.4 - 0.08 * i) for i in range(5)]
    assert PRUNER.decide(vector(0.35, 0.001), others).keep


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_a_number_is_pruned_and_never_compared(broken: float) -> None:
    assert not PRUNER.decide(vector(broken, 0.1), []).keep
    assert not PRUNER.decide(vector(0.9, broken), []).keep
    others = [vector(broken, 0.0), vector(0.2, broken)]
    assert "too few" in PRUNER.decide(vector(0.1, 0.3), others).reason


def test_vectors_of_another_measurement_are_not_compared() -> None:
    others = [replace(vector(0.9, 0.0), stamp="other") for _ in range(9)]
    assert "too few" in PRUNER.decide(vector(0.1, 0.4), others).reason


def test_places_are_ranks_and_not_an_order_of_indices() -> None:
    # The order best to worst is 3, 1, 0, 2: its inverse, the places, differs from it.
    vectors = [vector(0.4, 0.3), vector(0.6, 0.2), vector(0.2, 0.4), vector(0.8, 0.1)]
    assert PRUNER._places(vectors) == [2, 1, 3, 0]


def test_a_trial_that_finished_earlier_enters_with_its_last_vector() -> None:
    finished = [vector(0.3, 0.1), vector(0.5, 0.2, is_last=True)]
    running = [vector(0.2, 0.1)]
    there = [vector(0.2, 0.1), vector(0.7, 0.2, rung=1)]
    assert vectors_at_rung(1, {0: finished, 1: running, 2: there}) == [finished[1], there[1]]
    assert vectors_at_rung(0, {0: finished, 1: running, 2: there}) == [
        finished[0],
        running[0],
        there[0],
    ]


shares = st.floats(0, 1)
rungs = st.lists(st.builds(vector, shares, shares), min_size=3, max_size=12)


@given(rungs)
def test_a_member_of_the_front_inside_the_box_is_never_pruned(vectors: list[RungVector]) -> None:
    newcomer, others = vectors[0], vectors[1:]
    beaten = any(
        other.recall >= newcomer.recall and other.knowledge_loss <= newcomer.knowledge_loss
        for other in others
    )
    inside = newcomer.recall > 0.05 and newcomer.knowledge_loss < 0.5
    if inside and not beaten:
        assert PRUNER.decide(newcomer, others).keep


@given(rungs, st.randoms())
def test_the_order_of_the_others_does_not_matter(vectors: list[RungVector], draw: Random) -> None:
    newcomer, others = vectors[0], vectors[1:]
    shuffled = list(others)
    draw.shuffle(shuffled)
    assert PRUNER.decide(newcomer, others).keep == PRUNER.decide(newcomer, shuffled).keep


@given(rungs)
def test_every_place_is_given_once(vectors: list[RungVector]) -> None:
    assert sorted(PRUNER._places(vectors)) == list(range(len(vectors)))


def test_a_vector_survives_being_stored() -> None:
    stored = vector(0.123456789, 0.1, rung=2, is_last=True)
    assert RungVector.decode(stored.encode()) == stored
