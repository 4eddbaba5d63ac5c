"""Intervals of a share, of a mean over facts and of a mean over rings; and McNemar's test.

All of them are two-sided, lie in [0, 1], contain the value they stand for, and never have zero
width. Nothing observed is `NOT_MEASURED`, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, norm, t

from data.measurements import NOT_MEASURED, Estimate

_RESAMPLES = 999


def wilson_interval(successes: int, total: int, level: float = 0.95) -> Estimate:
    """Return the share of successes with Wilson's score interval (Wilson 1927).

    It assumes independent trials: for verdicts that cluster by fact use `bootstrap_t_interval`.

    Raises:
        ValueError: If the counts are no counts, or the level is not between 0 and 1.
    """
    _check_counts("successes", successes, "total", total)
    if total == 0:
        return NOT_MEASURED
    share = successes / total
    low, high = _wilson_bounds(share, total, _normal_quantile(level))
    return _estimate(share, low, high, total)


def pool_repeats(
    estimates: Sequence[Estimate], *, together: Estimate | None = None, level: float = 0.95
) -> Estimate:
    """Return the mean of an estimate over trainings that differ by their seed alone.

    Its interval carries both what the facts and what the seeds leave open: the distance to the
    ends of the interval `together`, and Student's interval of the mean over seeds, added as
    independent errors are. With one estimate it is that one's; estimates that were not measured
    are left out, and without any other the pool is `NOT_MEASURED`.

    Args:
        estimates: One per seed.
        together: The estimate over the verdicts of all seeds at once, clustered by fact. Without
            it the mean of the single intervals' ends is taken, which is rather too wide: each of
            them also holds what chance a single training leaves to a fact's verdicts.
        level: How often the interval shall cover.
    """
    measured = [
        (each.value, each.low, each.high)
        for each in estimates
        if each.value is not None and each.low is not None and each.high is not None
    ]
    if not measured:
        return NOT_MEASURED
    values, lows, highs = map(np.array, zip(*measured, strict=True))
    mean = float(values.mean())
    of_seeds = 0.0
    if len(values) > 1:
        quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
        of_seeds = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    low, high = float(lows.mean()), float(highs.mean())
    if together is not None and together.low is not None and together.high is not None:
        low, high = min(together.low, mean), max(together.high, mean)
    below, above = math.hypot(mean - low, of_seeds), math.hypot(high - mean, of_seeds)
    count = max(each.count for each in estimates)
    return _estimate(mean, mean - below, mean + above, count)


def bootstrap_t_interval(
    fact_scores: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Return the mean score of the facts with a studentised bootstrap interval.

    Facts are resampled, not verdicts, because the verdicts of one fact agree with each other
    (Efron and Tibshirani 1993, section 12.5). One deviation: a resample's variance is averaged
    with that of the facts, which weighs as one more fact against the resample's n - 1. Otherwise
    few facts with scores near 0 or 1 give resamples of variance 0 or almost 0, and the interval
    covers far too little.

    Facts whose scores are all equal have no variance to resample; they get Wilson's interval for
    as many independent trials as there are facts.

    Args:
        fact_scores: One score in [0, 1] for each fact; their order does not matter.
        level: How often the interval shall cover, between 0 and 1.
        seed: Chooses the resamples; the same for the same number of facts.

    Raises:
        ValueError: If a score is outside [0, 1] or NaN, or the level is not between 0 and 1.
    """
    scores = np.sort(np.asarray(fact_scores, dtype=np.float64))
    for score in scores:
        if not 0 <= score <= 1:
            raise ValueError(f"fact_scores: {score} is not allowed; a score must be in [0, 1]")
    quantile = _normal_quantile(level)
    count = len(scores)
    if count == 0:
        return NOT_MEASURED
    mean = float(scores.mean())
    if scores[0] == scores[-1]:
        low, high = _wilson_bounds(mean, count, quantile)
        return _estimate(mean, low, high, count)
    variance = float(scores.var(ddof=1))
    resampled = scores[_resamples(count, seed)]  # (resamples, facts)
    resampled_variance = resampled.var(axis=1, ddof=1)
    averaged = ((count - 1) * resampled_variance + variance) / count
    studentised = (resampled.mean(axis=1) - mean) / np.sqrt(averaged / count)
    tail = (1 - level) / 2
    lower_t, upper_t = np.quantile(studentised, [tail, 1 - tail])
    standard_error = math.sqrt(variance / count)
    low, high = mean - upper_t * standard_error, mean - lower_t * standard_error
    return _estimate(mean, float(low), float(high), count)


def stratified_loss_interval(
    lost_per_ring: Sequence[tuple[int, int]], *, level: float = 0.95
) -> Estimate:
    """Return the mean over rings of lost / known; each ring counts the same, whatever its size.

    The interval is Price and Bonett's (2004) for a linear function of proportions: each of the K
    rings gets z² / 2K probes lost and as many kept, then the variances add up. One ring gives the
    interval of Agresti and Coull; rings without any loss still have an upper bound above 0.
    `count` is the number of known probes over all rings.

    Args:
        lost_per_ring: For each ring how many of its known probes are lost, and how many are known.
            A ring without a known probe is left out; with none left, nothing is measured.
        level: How often the interval shall cover, between 0 and 1.

    Raises:
        ValueError: If the counts are no counts, or the level is not between 0 and 1.
    """
    for lost, known in lost_per_ring:
        _check_counts("lost", lost, "known", known)
    quantile = _normal_quantile(level)
    measured = [(lost, known) for lost, known in lost_per_ring if known > 0]
    if not measured:
        return NOT_MEASURED
    rings = len(measured)
    added = quantile**2 / (2 * rings)
    shares = [(lost + added) / (known + 2 * added) for lost, known in measured]
    variances = [
        share * (1 - share) / (known + 2 * added)
        for share, (_, known) in zip(shares, measured, strict=True)
    ]
    centre = math.fsum(shares) / rings
    half_width = quantile * math.sqrt(math.fsum(variances)) / rings
    return _estimate(
        math.fsum(lost / known for lost, known in measured) / rings,
        centre - half_width,
        centre + half_width,
        sum(known for _, known in measured),
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test for paired right-or-wrong answers.

    Args:
        only_first: Pairs of which only the first answer is right.
        only_second: Pairs of which only the second answer is right.

    Where the answers never differ the p-value is 1.

    Raises:
        ValueError: If a count is negative.
    """
    for name, value in (("only_first", only_first), ("only_second", only_second)):
        if value < 0:
            raise ValueError(f"{name}: {value} is not allowed; a count must be at least 0")
    differing = only_first + only_second
    return min(1.0, 2 * float(binom.cdf(min(only_first, only_second), differing, 0.5)))


def _check_counts(part_name: str, part: int, whole_name: str, whole: int) -> None:
    if not 0 <= part <= whole:
        raise ValueError(
            f"{part_name}: {part} of {whole_name} {whole} is not allowed; "
            f"it must be at least 0 and at most {whole_name}"
        )


def _normal_quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not allowed; it must be between 0 and 1")
    return float(norm.ppf((1 + level) / 2))


def _wilson_bounds(share: float, total: int, quantile: float) -> tuple[float, float]:
    spread = quantile**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half_width = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return centre - half_width, centre + half_width


def _estimate(value: float, low: float, high: float, count: int) -> Estimate:
    """Return an estimate whose bounds are in [0, 1] and enclose its value despite rounding."""
    return Estimate(
        value=value,
        low=max(0.0, min(low, value)),
        high=min(1.0, max(high, value)),
        count=count,
    )


@lru_cache(maxsize=8)
def _resamples(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return which facts each resample draws, (resamples, facts)."""
    return np.random.default_rng([seed, count]).integers(0, count, (_RESAMPLES, count))
