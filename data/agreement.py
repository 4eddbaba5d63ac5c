"""How far a judge agrees with people, and recall corrected for the judge's errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from data.intervals import mcnemar_p_value, wilson_interval
from data.measurements import NOT_MEASURED, Estimate, Label

# Recall is corrected only by an agreement that rests on at least so many judged answers: with
# fewer, the correction's own uncertainty is larger than what it corrects.
MIN_LABELLED = 200

_QUANTILE = float(norm.ppf(0.975))  # every interval here is a 95 % one
_DRAWS = 20_000


class NotCorrectable(ValueError):
    """Recall cannot be corrected with this agreement; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A judge's labels against those of people, where "correct" is positive and all else negative.

    `true_positives` and `true_negatives` are the answers on which both agree; the judge accepts
    `false_positives` that people do not, and refuses `false_negatives` that they accept. Answers
    that the judge left `unjudged` are counted apart and are in no figure.

    An estimate's `count` is the number of answers it rests on. Every interval is a 95 % one for
    independent answers, has some width, and contains its value.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    unjudged: int

    def __post_init__(self) -> None:
        for field in self.__dataclass_fields__:
            if getattr(self, field) < 0:
                raise ValueError(f"{field}: {getattr(self, field)} is not allowed; at least 0")

    @property
    def judged(self) -> int:
        """Return how many answers both people and the judge decided about."""
        return sum(self._cells)

    @property
    def sensitivity(self) -> Estimate:
        """Return the share of the answers people accept that the judge accepts: higher is better.

        `NOT_MEASURED` where people accept none. Wilson's interval (1927).
        """
        return wilson_interval(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> Estimate:
        """Return the share of the answers people refuse that the judge refuses: higher is better.

        `NOT_MEASURED` where people refuse none. Wilson's interval (1927).
        """
        return wilson_interval(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def kappa(self) -> Estimate:
        """Return Cohen's kappa (1960): agreement beyond chance, 1 complete, 0 none; at least -1.

        `NOT_MEASURED` where all labels of both are the same one, for then chance alone agrees.

        The interval is the large-sample one of Fleiss, Cohen and Everitt (1969) with half an
        answer added to each of the four counts. Without those it would have no width where judge
        and people differ nowhere, and cover far too little where they hardly ever do.
        """
        value = _kappa(*self._cells)
        if value is None:
            return NOT_MEASURED
        added = [count + 0.5 for count in self._cells]
        centre = _kappa(*added)
        assert centre is not None  # no count is 0
        half_width = _QUANTILE * _kappa_error(*added)
        return Estimate(
            value=value,
            low=max(-1.0, min(value, centre - half_width)),
            high=min(1.0, max(value, centre + half_width)),
            count=self.judged,
        )

    @property
    def bias(self) -> Estimate:
        """Return the judge's share of "correct" minus that of people: 0 is best, 1 and -1 worst.

        Above 0 the judge is too kind. `NOT_MEASURED` without an answer. The interval for paired
        proportions is the adjusted Wald interval of Bonett and Price (2012).
        """
        if not self.judged:
            return NOT_MEASURED
        value = (self.false_positives - self.false_negatives) / self.judged
        total = self.judged + 2
        too_kind, too_strict = (
            (self.false_positives + 1) / total,
            (self.false_negatives + 1) / total,
        )
        centre = too_kind - too_strict
        half_width = _QUANTILE * math.sqrt((too_kind + too_strict - centre**2) / total)
        return Estimate(
            value=value,
            low=max(-1.0, min(value, centre - half_width)),
            high=min(1.0, max(value, centre + half_width)),
            count=self.judged,
        )

    @property
    def is_no_better_than_chance(self) -> bool:
        """Return whether sensitivity and specificity are measured and add up to at most 1."""
        sensitivity, specificity = self.sensitivity.value, self.specificity.value
        if sensitivity is None or specificity is None:
            return False
        return sensitivity + specificity <= 1

    @property
    def bias_p_value(self) -> float | None:
        """Return the two-sided p-value of McNemar's exact test of no bias; None without an answer.

        It is 1 where judge and people never differ.
        """
        if not self.judged:
            return None
        return mcnemar_p_value(self.false_positives, self.false_negatives)

    @property
    def _cells(self) -> tuple[int, int, int, int]:
        return (
            self.true_positives,
            self.false_positives,
            self.false_negatives,
            self.true_negatives,
        )


def measure_agreement(pairs: Iterable[tuple[Label, Label]]) -> Agreement:
    """Return the agreement over pairs of people's label and the judge's label, in this order.

    "incorrect" and "not_attempted" are both negative. Without a pair every figure is not measured.

    Raises:
        ValueError: If a label of people is "unjudged".
    """
    counts = {(people, judge): 0 for people in (True, False) for judge in (True, False)}
    unjudged = 0
    for people, judge in pairs:
        if people == "unjudged":
            raise ValueError("pairs: people's label 'unjudged' is not allowed; leave the pair out")
        if judge == "unjudged":
            unjudged += 1
        else:
            counts[people == "correct", judge == "correct"] += 1
    return Agreement(
        true_positives=counts[True, True],
        false_positives=counts[False, True],
        false_negatives=counts[True, False],
        true_negatives=counts[False, False],
        unjudged=unjudged,
    )


def why_not_correctable(agreement: Agreement) -> str | None:
    """Return why recall cannot be corrected with an agreement, or None where it can be."""
    if agreement.judged < MIN_LABELLED:
        return (
            f"it rests on {agreement.judged} labelled answers that the judge decided about, and a "
            f"correction needs at least {MIN_LABELLED}"
        )
    sensitivity, specificity = agreement.sensitivity.value, agreement.specificity.value
    if sensitivity is None or specificity is None:
        wanting = "right" if sensitivity is None else "wrong"
        return f"people found none of the labelled answers {wanting}; label some that are"
    if agreement.is_no_better_than_chance:
        return (
            f"its sensitivity {sensitivity:.3g} and specificity {specificity:.3g} add up to no "
            "more than 1: it accepts wrong answers at least as often as right ones"
        )
    return None


def correct_recall(recall: Estimate, agreement: Agreement, *, seed: int = 0) -> Estimate:
    """Return the recall that people would have found, from the one a judge found.

    The value is Rogan and Gladen's (1978), (recall + specificity - 1) / (sensitivity + specificity
    - 1), clipped to [0, 1]. It is unbiased only where the labelled answers are such as recall
    rests on: of the same models and facts, judged by the same judge.

    The 95 % interval carries both uncertainties, as that of Lang and Reiczigel (2014) does; but
    theirs takes recall to be binomial, and ours clusters by fact. So it is simulated: sensitivity
    and specificity are drawn from their Beta posteriors (Jeffreys' prior), recall from a normal
    distribution that has, on either side of its value, the width of its own interval. A draw in
    which the judge is no better than chance tells nothing: it counts half as 0 and half as 1.

    Args:
        recall: As the judge found it, with its 95 % interval; `NOT_MEASURED` stays so.
        agreement: Of the same judge.
        seed: Chooses the draws.

    Raises:
        NotCorrectable: With the reason of `why_not_correctable`.
    """
    reason = why_not_correctable(agreement)
    if reason is not None:
        raise NotCorrectable(reason)
    if recall.value is None or recall.low is None or recall.high is None:
        return NOT_MEASURED
    sensitivity, specificity = agreement.sensitivity.value, agreement.specificity.value
    assert sensitivity is not None
    assert specificity is not None
    value = (recall.value + specificity - 1) / (sensitivity + specificity - 1)
    value = min(1.0, max(0.0, value))

    generator = np.random.default_rng(seed)
    errors = generator.standard_normal(_DRAWS) / _QUANTILE
    below, above = recall.value - recall.low, recall.high - recall.value
    recalls = np.clip(recall.value + errors * np.where(errors < 0, below, above), 0, 1)
    sensitivities = generator.beta(
        agreement.true_positives + 0.5, agreement.false_negatives + 0.5, _DRAWS
    )
    specificities = generator.beta(
        agreement.true_negatives + 0.5, agreement.false_positives + 0.5, _DRAWS
    )
    informed = sensitivities + specificities - 1
    tells = informed > 0
    corrected = np.where(np.arange(_DRAWS) % 2, 1.0, 0.0)
    corrected[tells] = np.clip((recalls + specificities - 1)[tells] / informed[tells], 0, 1)
    low, high = np.quantile(corrected, [0.025, 0.975])
    return Estimate(
        value=value, low=min(value, float(low)), high=max(value, float(high)), count=recall.count
    )


def _kappa(both: float, only_judge: float, only_people: float, neither: float) -> float | None:
    total = both + only_judge + only_people + neither
    if not total:
        return None
    observed = (both + neither) / total
    chance = (
        (both + only_judge) * (both + only_people)
        + (neither + only_judge) * (neither + only_people)
    ) / total**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def _kappa_error(both: float, only_judge: float, only_people: float, neither: float) -> float:
    """Return the large-sample standard error of kappa (Fleiss, Cohen and Everitt 1969, eq. 13)."""
    kappa = _kappa(both, only_judge, only_people, neither)
    assert kappa is not None
    total = both + only_judge + only_people + neither
    yes, kind, strict, no = (x / total for x in (both, only_judge, only_people, neither))
    judge_yes, judge_no = yes + kind, no + strict
    people_yes, people_no = yes + strict, no + kind
    chance = judge_yes * people_yes + judge_no * people_no
    on_diagonal = (
        yes * (1 - (judge_yes + people_yes) * (1 - kappa)) ** 2
        + no * (1 - (judge_no + people_no) * (1 - kappa)) ** 2
    )
    beside = (1 - kappa) ** 2 * (
        kind * (people_yes + judge_no) ** 2 + strict * (people_no + judge_yes) ** 2
    )
    variance = on_diagonal + beside - (kappa - chance * (1 - kappa)) ** 2
    return math.sqrt(max(variance, 0.0) / total) / (1 - chance)
