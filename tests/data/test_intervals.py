"""Intervals against hand arithmetic, SciPy, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from data.intervals import (
    bootstrap_t_interval,
    mcnemar_p_value,
    pool_repeats,
    stratified_loss_interval,
    wilson_interval,
)
from data.measurements import NOT_MEASURED, Estimate

_levels = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])
_counts = st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
_scores = st.lists(st.integers(0, 12).map(lambda right: right / 12), min_size=1, max_size=30)


def _bounds(estimate: Estimate) -> tuple[float, float, float]:
    assert estimate.low is not None
    assert estimate.value is not None
    assert estimate.high is not None
    return estimate.low, estimate.value, estimate.high


def _covers(estimate: Estimate, truth: float) -> bool:
    low, _, high = _bounds(estimate)
    return low <= truth <= high


def _is_sound(estimate: Estimate) -> bool:
    low, value, high = _bounds(estimate)
    return 0 <= low <= value <= high <= 1 and low < high


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (3, 10), (10, 10), (17, 276), (1, 1)])
def test_wilson_interval_equals_scipy(successes: int, total: int) -> None:
    expected = binomtest(successes, total).proportion_ci(0.95, method="wilson")

    low, value, high = _bounds(wilson_interval(successes, total))

    assert value == successes / total
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_nothing_observed_is_not_measured() -> None:
    assert wilson_interval(0, 0) == NOT_MEASURED
    assert bootstrap_t_interval([]) == NOT_MEASURED
    assert stratified_loss_interval([]) == NOT_MEASURED
    assert stratified_loss_interval([(0, 0), (0, 0)]) == NOT_MEASURED


@given(_counts.filter(lambda counts: counts[1] > 0), _levels)
def test_wilson_interval_encloses_its_value(counts: tuple[int, int], level: float) -> None:
    assert _is_sound(wilson_interval(*counts, level=level))


@given(_scores, _levels, st.integers(0, 3))
def test_bootstrap_interval_encloses_its_mean_and_has_a_width(
    scores: list[float], level: float, seed: int
) -> None:
    estimate = bootstrap_t_interval(scores, level=level, seed=seed)

    assert _is_sound(estimate)
    assert estimate.count == len(scores)
    assert estimate.value == pytest.approx(sum(scores) / len(scores))


@given(_scores.flatmap(lambda scores: st.tuples(st.just(scores), st.permutations(scores))))
def test_the_order_of_facts_does_not_matter(orders: tuple[list[float], list[float]]) -> None:
    first, second = orders

    assert bootstrap_t_interval(first) == bootstrap_t_interval(second)


@given(_scores)
def test_a_wider_level_never_narrows_an_interval(scores: list[float]) -> None:
    narrow = _bounds(bootstrap_t_interval(scores, level=0.8))
    wide = _bounds(bootstrap_t_interval(scores, level=0.95))

    assert wide[0] <= narrow[0] <= narrow[2] <= wide[2]


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_equal_scores_get_wilsons_interval_over_facts(score: float) -> None:
    # 23 facts all right: with z = 1.96 the lower bound is 23 / (23 + z²) = 0.857.
    low, value, high = _bounds(bootstrap_t_interval([score] * 23))

    assert value == score
    assert (low, high) == pytest.approx((0.857, 1) if score else (0, 0.143), abs=5e-4)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    scores = [0.0, 0.25, 0.5, 1.0, 1.0, 0.75]

    assert bootstrap_t_interval(scores, seed=4) == bootstrap_t_interval(scores, seed=4)
    assert bootstrap_t_interval(scores, seed=4) != bootstrap_t_interval(scores, seed=5)


def test_many_verdicts_of_few_facts_give_no_narrow_interval() -> None:
    # 10 facts, 100 verdicts each, all right or all wrong: ten observations, not a thousand.
    low, _, high = _bounds(bootstrap_t_interval([1.0] * 5 + [0.0] * 5))
    over_verdicts = _bounds(wilson_interval(500, 1000))

    assert high - low > 5 * (over_verdicts[2] - over_verdicts[0])


@given(st.lists(_counts, min_size=1, max_size=6), _levels)
def test_loss_interval_encloses_the_mean_over_rings(
    rings: list[tuple[int, int]], level: float
) -> None:
    measured = [(lost, known) for lost, known in rings if known]
    estimate = stratified_loss_interval(rings, level=level)

    if not measured:
        assert estimate == NOT_MEASURED
        return
    assert _is_sound(estimate)
    assert estimate.value == pytest.approx(
        sum(lost / known for lost, known in measured) / len(measured)
    )
    assert estimate.count == sum(known for _, known in measured)


def test_each_ring_counts_the_same_whatever_its_size() -> None:
    # (10/20 + 0/80) / 2 = 0.25, not 10/100.
    assert stratified_loss_interval([(10, 20), (0, 80)]).value == pytest.approx(0.25)


def test_one_ring_gives_the_interval_of_agresti_and_coull() -> None:
    # z² = 3.8415; 3 of 40: centre (3 + 1.9207) / 43.8415 = 0.11224,
    # half width 1.95996 * sqrt(0.11224 * 0.88776 / 43.8415) = 0.09344.
    low, value, high = _bounds(stratified_loss_interval([(3, 40)]))

    assert value == 0.075
    assert (low, high) == pytest.approx((0.11224 - 0.09344, 0.11224 + 0.09344), abs=2e-5)


def test_no_loss_at_all_still_has_an_upper_bound_above_zero() -> None:
    low, value, high = _bounds(stratified_loss_interval([(0, 90), (0, 50), (0, 60), (0, 24)]))

    assert (low, value) == (0, 0)
    assert 0.01 < high < 0.05


# Superpopulation of facts: fact i is answered right with probability p_i from a beta distribution
# with the given mean; `agreement` a+b says how much the verdicts of a fact cluster: 0.3 nearly all
# or none right, 2 strongly, infinity not at all. 12 verdicts a fact (3 wordings in 4 styles).
# The facts are few, as ours are. Truth is the mean of the beta distribution.
_RECALL_SCENARIOS = [
    (facts, mean, agreement)
    for facts in (10, 23, 40)
    for mean in (0.1, 0.5, 0.8, 0.9)
    for agreement in (0.3, 2.0, math.inf)
]


def _simulate_fact_scores(
    generator: np.random.Generator, facts: int, mean: float, agreement: float
) -> list[float]:
    chances = (
        np.full(facts, mean)
        if math.isinf(agreement)
        else generator.beta(mean * agreement, (1 - mean) * agreement, facts)
    )
    return list(generator.binomial(12, chances) / 12)


def test_recall_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(20230312)
    coverage = []
    for facts, mean, agreement in _RECALL_SCENARIOS:
        covered = [
            _covers(
                bootstrap_t_interval(_simulate_fact_scores(generator, facts, mean, agreement)),
                mean,
            )
            for _ in range(100)
        ]
        coverage.append(sum(covered) / len(covered))

    # Single scenarios differ (strong clustering near 1 covers least); 3,600 intervals in all.
    assert 0.93 <= sum(coverage) / len(coverage) <= 0.97
    assert min(coverage) >= 0.80


def test_wilson_over_verdicts_would_cover_far_too_little() -> None:
    generator = np.random.default_rng(7)
    covered = []
    for _ in range(300):
        right = round(12 * sum(_simulate_fact_scores(generator, 23, 0.8, 0.3)))
        covered.append(_covers(wilson_interval(right, 12 * 23), 0.8))

    assert sum(covered) / len(covered) < 0.7


# Known probes per ring, and the chance that a probe of each ring is lost: none nearly, few, many,
# and the first ring alone losing half.
_LOSS_SCENARIOS = [
    (known, chance)
    for known in ((90, 50, 60, 60, 24), (20, 20, 20), (40, 30), (60,))
    for chance in (0.02, 0.05, 0.1, 0.3, 0.5, None)
]


def test_loss_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(95)
    coverage = []
    for known, chance in _LOSS_SCENARIOS:
        chances = [0.5] + [0.02] * (len(known) - 1) if chance is None else [chance] * len(known)
        truth = sum(chances) / len(chances)
        draws = generator.binomial(known, chances, (1000, len(known)))
        covered = [
            _covers(stratified_loss_interval(list(zip(map(int, lost), known, strict=True))), truth)
            for lost in draws
        ]
        coverage.append(sum(covered) / len(covered))

    assert 0.93 <= sum(coverage) / len(coverage) <= 0.97
    assert min(coverage) >= 0.92


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (5, 0), (1, 9), (7, 7), (30, 12)])
def test_mcnemar_equals_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    differing = only_first + only_second
    expected = binomtest(only_first, differing).pvalue if differing else 1.0

    assert mcnemar_p_value(only_first, only_second) == pytest.approx(expected)
    assert mcnemar_p_value(only_second, only_first) == mcnemar_p_value(only_first, only_second)


def test_five_against_none_by_hand() -> None:
    # Two tails of (1/2)^5 each.
    assert mcnemar_p_value(5, 0) == pytest.approx(2 / 32)


def test_impossible_counts_and_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="successes: 3 of total 2"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="lost: -1 of known 2"):
        stratified_loss_interval([(-1, 2)])
    with pytest.raises(ValueError, match=r"fact_scores: 1\.5"):
        bootstrap_t_interval([0.5, 1.5])
    with pytest.raises(ValueError, match="fact_scores: nan"):
        bootstrap_t_interval([0.5, math.nan])
    with pytest.raises(ValueError, match=r"level: 1\.0"):
        wilson_interval(1, 2, level=1.0)
    with pytest.raises(ValueError, match="only_second: -1"):
        mcnemar_p_value(1, -1)


def _made(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, count=23)


def test_repeats_are_pooled_by_hand() -> None:
    pooled = pool_repeats([_made(0.6, 0.5, 0.7), _made(0.7, 0.6, 0.8), NOT_MEASURED])
    low, value, high = _bounds(pooled)
    # Deviation 0.0707 over two seeds: 12.706 * 0.0707 / sqrt(2) = 0.6353, with 0.1 of the facts.
    assert value == pytest.approx(0.65)
    assert low == pytest.approx(0.65 - math.hypot(0.1, 0.6353), abs=1e-4)
    assert high == 1
    assert pooled.count == 23


def test_verdicts_taken_together_say_what_the_facts_leave_open() -> None:
    repeats = [_made(0.6, 0.4, 0.8), _made(0.6, 0.4, 0.8)]
    pooled = pool_repeats(repeats, together=_made(0.6, 0.55, 0.7))
    assert _bounds(pooled) == pytest.approx((0.55, 0.6, 0.7))
    assert pool_repeats([NOT_MEASURED], together=NOT_MEASURED) == NOT_MEASURED


def test_one_training_keeps_its_interval_and_none_is_not_measured() -> None:
    assert pool_repeats([_made(0.6, 0.5, 0.8)]) == _made(0.6, 0.5, 0.8)
    assert pool_repeats([]) == NOT_MEASURED
    assert pool_repeats([NOT_MEASURED]) == NOT_MEASURED


def test_pooled_intervals_of_recall_cover_at_least_as_often_as_they_say() -> None:
    generator = np.random.default_rng(31)
    coverage = []
    pooled_coverage = []
    for facts, mean, seed_deviation in [
        (facts, mean, deviation)
        for facts in (10, 23)
        for mean in (0.5, 0.8)
        for deviation in (0.0, 0.05)
    ]:
        covered, covered_together = [], []
        for _ in range(100):
            # The facts are the same under every seed, which shifts all of them alike.
            chances = generator.beta(mean * 2, (1 - mean) * 2, facts)
            scores = np.array(
                [
                    generator.binomial(
                        12, np.clip(chances + generator.normal(0, seed_deviation), 0, 1)
                    )
                    / 12
                    for _ in range(3)
                ]
            )
            repeats = [bootstrap_t_interval(list(own)) for own in scores]
            covered.append(_covers(pool_repeats(repeats), mean))
            together = bootstrap_t_interval(list(scores.mean(axis=0)))
            covered_together.append(_covers(pool_repeats(repeats, together=together), mean))
        coverage.append(sum(covered) / len(covered))
        pooled_coverage.append(sum(covered_together) / len(covered_together))
    assert sum(pooled_coverage) / len(pooled_coverage) >= 0.94
    assert min(pooled_coverage) >= 0.87
    assert sum(coverage) / len(coverage) >= 0.95
    assert min(coverage) >= 0.88
