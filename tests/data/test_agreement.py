"""A judge against people: every figure by hand, what holds for any counts, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from data.agreement import (
    MIN_LABELLED,
    Agreement,
    NotCorrectable,
    correct_recall,
    measure_agreement,
    why_not_correctable,
)
from data.intervals import bootstrap_t_interval, wilson_interval
from data.measurements import NOT_MEASURED, Estimate, Label


def counted(
    true_positives: int, false_positives: int, false_negatives: int, true_negatives: int
) -> Agreement:
    return Agreement(
        true_positives=true_positives,
        false_positives=false_positives,
        false_negatives=false_negatives,
        true_negatives=true_negatives,
        unjudged=0,
    )


def covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


def value_of(estimate: Estimate) -> float:
    assert estimate.value is not None
    return estimate.value


def test_pairs_are_counted_with_not_attempted_as_wrong_and_unjudged_apart() -> None:
    pairs: list[tuple[Label, Label]] = [
        ("correct", "correct"),
        ("correct", "correct"),
        ("correct", "incorrect"),
        ("correct", "not_attempted"),
        ("incorrect", "correct"),
        ("not_attempted", "incorrect"),
        ("incorrect", "not_attempted"),
        ("correct", "unjudged"),
        ("incorrect", "unjudged"),
    ]

    agreement = measure_agreement(pairs)

    assert agreement == Agreement(
        true_positives=2, false_positives=1, false_negatives=2, true_negatives=2, unjudged=2
    )
    assert agreement.judged == 7


def test_people_cannot_leave_an_answer_unjudged() -> None:
    with pytest.raises(ValueError, match="people's label 'unjudged' is not allowed"):
        measure_agreement([("unjudged", "correct")])


def test_counts_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="true_negatives: -1"):
        counted(1, 1, 1, -1)


def test_the_figures_of_a_hundred_answers_by_hand() -> None:
    agreement = counted(40, 10, 20, 30)

    # 40 of the 60 that people accept, 30 of the 40 that they refuse.
    assert agreement.sensitivity == wilson_interval(40, 60)
    assert value_of(agreement.sensitivity) == pytest.approx(2 / 3)
    assert agreement.specificity == wilson_interval(30, 40)
    assert value_of(agreement.specificity) == 0.75
    # Observed 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; (0.7 - 0.5) / (1 - 0.5).
    assert value_of(agreement.kappa) == pytest.approx(0.4)
    # The judge accepts 50, people 60.
    assert value_of(agreement.bias) == pytest.approx(-0.1)
    assert agreement.bias_p_value == pytest.approx(binomtest(10, 30).pvalue)
    assert {e.count for e in (agreement.kappa, agreement.bias)} == {100}


def test_the_interval_of_kappa_is_that_of_fleiss_cohen_and_everitt() -> None:
    # By the delta method, differentiating kappa numerically over the four shares instead.
    counts = np.array([40.5, 10.5, 20.5, 30.5])
    shares = counts / counts.sum()

    def kappa_of(cells: np.ndarray) -> float:
        yes, kind, strict, no = cells / cells.sum()
        chance = (yes + kind) * (yes + strict) + (strict + no) * (kind + no)
        return float((yes + no - chance) / (1 - chance))

    step = 1e-6
    slopes = np.array(
        [
            (kappa_of(shares + step * e) - kappa_of(shares - step * e)) / (2 * step)
            for e in np.eye(4)
        ]
    )
    variance = (shares @ slopes**2 - (shares @ slopes) ** 2) / counts.sum()
    half_width = 1.959964 * math.sqrt(variance)
    kappa = counted(40, 10, 20, 30).kappa

    assert kappa.low == pytest.approx(kappa_of(shares) - half_width, abs=1e-5)
    assert kappa.high == pytest.approx(kappa_of(shares) + half_width, abs=1e-5)


def test_the_interval_of_the_bias_by_hand() -> None:
    # Bonett and Price: (11 - 21) / 102 and its error sqrt((32 / 102 - (10 / 102)^2) / 102).
    bias = counted(40, 10, 20, 30).bias
    error = math.sqrt((32 / 102 - (10 / 102) ** 2) / 102)

    assert bias.low == pytest.approx(-10 / 102 - 1.959964 * error)
    assert bias.high == pytest.approx(-10 / 102 + 1.959964 * error)


def test_published_kappas_are_reproduced() -> None:
    # The counts of two judges of TriviaQA answers (Thakur et al. 2024) follow from their bias,
    # sensitivity and specificity; the kind one has a kappa of 0.606, the good one of 0.892.
    people_right, people_wrong = 2038, 1162
    for sensitivity, specificity, kappa in ((0.996, 0.553, 0.606), (0.954, 0.943, 0.892)):
        right, wrong = round(people_right * sensitivity), round(people_wrong * specificity)
        agreement = counted(right, people_wrong - wrong, people_right - right, wrong)
        assert value_of(agreement.kappa) == pytest.approx(kappa, abs=0.005)


def test_nothing_labelled_is_not_measured() -> None:
    nothing = measure_agreement([])

    assert nothing.sensitivity == nothing.specificity == NOT_MEASURED
    assert nothing.kappa == nothing.bias == NOT_MEASURED
    assert nothing.bias_p_value is None


def test_an_empty_denominator_is_not_measured() -> None:
    assert counted(0, 3, 0, 5).sensitivity == NOT_MEASURED
    assert counted(3, 0, 5, 0).specificity == NOT_MEASURED
    # Where everybody says the same of everything, chance agrees as well.
    assert counted(9, 0, 0, 0).kappa == NOT_MEASURED
    assert value_of(counted(9, 0, 0, 0).bias) == 0


counts = st.integers(0, 400)


@given(counts, counts, counts, counts)
def test_figures_keep_their_bounds_and_have_some_width(tp: int, fp: int, fn: int, tn: int) -> None:
    agreement = counted(tp, fp, fn, tn)
    for estimate, lowest in (
        (agreement.sensitivity, 0),
        (agreement.specificity, 0),
        (agreement.kappa, -1),
        (agreement.bias, -1),
    ):
        if estimate.value is None:
            assert estimate == NOT_MEASURED
            continue
        assert estimate.low is not None
        assert estimate.high is not None
        assert lowest <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.low < estimate.high


@given(st.integers(1, 400), st.integers(1, 400))
def test_kappa_is_1_where_all_agree_and_below_0_where_none_do(one: int, other: int) -> None:
    assert value_of(counted(one, 0, 0, other).kappa) == pytest.approx(1)
    assert value_of(counted(0, one, other, 0).kappa) < 0
    assert value_of(counted(one, 0, 0, other).bias) == 0


@given(counts, counts, counts, counts)
def test_judge_and_people_may_change_places(tp: int, fp: int, fn: int, tn: int) -> None:
    one, turned = counted(tp, fp, fn, tn), counted(tp, fn, fp, tn)

    assert one.bias_p_value == turned.bias_p_value
    for mine, theirs, sign in ((one.kappa, turned.kappa, 1), (one.bias, turned.bias, -1)):
        if mine.value is None:
            assert theirs.value is None
        else:
            assert value_of(mine) == pytest.approx(sign * value_of(theirs))


@given(counts, counts, counts, counts)
def test_right_and_wrong_may_change_places(tp: int, fp: int, fn: int, tn: int) -> None:
    one, turned = counted(tp, fp, fn, tn), counted(tn, fn, fp, tp)

    assert one.sensitivity == turned.specificity
    assert (one.kappa.value is None) == (turned.kappa.value is None)
    if one.kappa.value is not None:
        assert value_of(one.kappa) == pytest.approx(value_of(turned.kappa))


# How often people accept an answer, and the judge's sensitivity and specificity.
_JUDGES = [
    (share, sensitivity, specificity)
    for share in (0.1, 0.5, 0.8)
    for sensitivity, specificity in ((0.8, 0.95), (0.95, 0.95), (0.99, 0.99), (0.6, 0.9))
]


def test_intervals_of_kappa_and_bias_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1969)
    of_kappa, of_bias = [], []
    for share, sensitivity, specificity in _JUDGES:
        chances = [
            share * sensitivity,
            (1 - share) * (1 - specificity),
            share * (1 - sensitivity),
            (1 - share) * specificity,
        ]
        kappa = value_of(counted(*(round(1e9 * chance) for chance in chances)).kappa)
        for labelled in (100, 200, 500):
            drawn = [
                counted(*map(int, row)) for row in generator.multinomial(labelled, chances, 250)
            ]
            of_kappa.append(
                sum(covers(each.kappa, kappa) for each in drawn if each.kappa.value is not None)
                / len(drawn)
            )
            bias = chances[1] - chances[2]
            of_bias.append(sum(covers(each.bias, bias) for each in drawn) / len(drawn))

    assert 0.93 <= sum(of_kappa) / len(of_kappa) <= 0.97
    assert 0.93 <= sum(of_bias) / len(of_bias) <= 0.97
    assert min(*of_kappa, *of_bias) >= 0.90


GOOD = counted(180, 8, 20, 192)  # sensitivity 0.9, specificity 0.96


def found(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, count=23)


def test_recall_is_corrected_by_hand() -> None:
    corrected = correct_recall(found(0.47, 0.3, 0.6), GOOD)

    # (0.47 + 0.96 - 1) / (0.9 + 0.96 - 1)
    assert value_of(corrected) == pytest.approx(0.5)
    assert corrected.count == 23
    assert corrected.low is not None
    assert corrected.high is not None
    # At least as wide as recall's own interval stretched by 1 / 0.86.
    assert corrected.low < (0.3 - 0.04) / 0.86 < (0.6 - 0.04) / 0.86 < corrected.high


def test_a_corrected_recall_is_clipped() -> None:
    assert correct_recall(found(0.0, 0.0, 0.1), GOOD).value == 0
    assert correct_recall(found(0.95, 0.9, 1.0), GOOD).value == 1


def test_a_recall_that_is_not_measured_stays_so() -> None:
    assert correct_recall(NOT_MEASURED, GOOD) == NOT_MEASURED


def test_a_perfect_judge_corrects_almost_nothing() -> None:
    recall = found(0.5, 0.4, 0.6)
    corrected = correct_recall(recall, counted(50_000, 0, 0, 50_000))

    assert value_of(corrected) == pytest.approx(0.5)
    assert corrected.low == pytest.approx(0.4, abs=0.005)
    assert corrected.high == pytest.approx(0.6, abs=0.005)


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(100, 900),
    st.integers(0, 99),
    st.integers(0, 99),
)
def test_a_corrected_recall_lies_within_its_interval(
    one: float, two: float, three: float, right: int, kind: int, strict: int
) -> None:
    low, value, high = sorted((one, two, three))
    corrected = correct_recall(found(value, low, high), counted(right, kind, strict, right))

    assert corrected.low is not None
    assert corrected.high is not None
    assert 0 <= corrected.low <= value_of(corrected) <= corrected.high <= 1
    assert corrected == correct_recall(
        found(value, low, high), counted(right, kind, strict, right)
    )


@pytest.mark.parametrize(
    ("agreement", "reason"),
    [
        (counted(90, 10, 9, 90), "rests on 199 labelled answers .* at least 200"),
        (counted(0, 10, 0, 190), "none of the labelled answers right"),
        (counted(190, 0, 10, 0), "none of the labelled answers wrong"),
        (counted(50, 50, 50, 50), r"sensitivity 0\.5 and specificity 0\.5 add up to no more"),
        (counted(30, 50, 70, 50), "no more than 1"),
    ],
)
def test_an_agreement_that_cannot_correct_is_refused(agreement: Agreement, reason: str) -> None:
    with pytest.raises(NotCorrectable, match=reason):
        correct_recall(found(0.5, 0.4, 0.6), agreement)
    assert why_not_correctable(agreement) is not None


def test_unjudged_answers_do_not_count_towards_those_needed() -> None:
    few = Agreement(
        true_positives=90, false_positives=10, false_negatives=9, true_negatives=90, unjudged=50
    )
    assert why_not_correctable(few) is not None
    assert why_not_correctable(counted(90, 10, 10, 90)) is None
    assert MIN_LABELLED == 200


# Facts, their mean true recall, how much the answers of a fact cluster (as for recall's own
# interval), and the judge with the number of answers it was checked on, half of them right.
_CORRECTIONS = [
    (facts, clustering, recall, *judge)
    for facts, clustering in ((23, 2.0), (40, 0.5), (40, 2.0))
    for recall in (0.1, 0.5, 0.85)
    for judge in ((0.8, 0.98, 200), (0.95, 0.9, 300), (0.9, 0.95, 1000), (0.7, 0.8, 200))
]


def test_intervals_of_corrected_recall_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1978)
    coverage, uncorrected = [], []
    for facts, clustering, recall, sensitivity, specificity, labelled in _CORRECTIONS:
        covered = []
        for _ in range(60):
            chances = generator.beta(recall * clustering, (1 - recall) * clustering, facts)
            accepted = chances * sensitivity + (1 - chances) * (1 - specificity)
            apparent = bootstrap_t_interval(list(generator.binomial(12, accepted) / 12))
            right = int(generator.binomial(labelled, 0.5))
            accepts = int(generator.binomial(right, sensitivity))
            refuses = int(generator.binomial(labelled - right, specificity))
            agreement = counted(accepts, labelled - right - refuses, right - accepts, refuses)
            covered.append(covers(correct_recall(apparent, agreement), recall))
            uncorrected.append(covers(apparent, recall))
        coverage.append(sum(covered) / len(covered))

    assert 0.93 <= sum(coverage) / len(coverage) <= 0.97
    assert min(coverage) >= 0.85
    assert sum(uncorrected) / len(uncorrected) < 0.85
