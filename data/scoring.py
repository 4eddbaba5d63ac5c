"""Turns verdicts into numbers: recall, knowledge loss by ring, FUAR, and what was known before."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from data.intervals import bootstrap_t_interval, stratified_loss_interval, wilson_interval
from data.measurements import Estimate, RecallPart, RingChange, Verdict
from data.probes import MIN_KNOWN_PER_RING, RINGS
from data.prompts import ALL_STYLES, PHRASINGS, Phrasing


def score_recall(
    verdicts: Sequence[Verdict], *, phrasing: Phrasing = "validation", seed: int = 0
) -> Estimate:
    """Return the recall over one phrasing: higher is better.

    A fact's score is the mean over prompt styles of the share of its wordings that were answered
    right; recall is the mean score of the facts. Every fact and, within it, every style counts
    the same, however many wordings were asked. Not attempting is wrong; unjudged verdicts are
    left out, and so are facts with no other. Without any fact recall is `NOT_MEASURED`.

    Args:
        verdicts: Verdicts of any phrasings and styles; those of other phrasings are ignored.
        phrasing: The wordings that count.
        seed: Chooses the resamples of the interval, a bootstrap over facts.
    """
    asked = [verdict for verdict in verdicts if verdict.answer.prompt.phrasing == phrasing]
    return bootstrap_t_interval(list(_score_facts(asked).values()), seed=seed)


def recall_parts(verdicts: Sequence[Verdict]) -> tuple[RecallPart, ...]:
    """Return the recall of every phrasing that was asked, over all styles and then in each style.

    Probes are no part of recall and are ignored. A phrasing, or a style of it, of which every
    verdict is unjudged appears as not measured.
    """
    parts: list[RecallPart] = []
    for phrasing in PHRASINGS:
        asked = [verdict for verdict in verdicts if verdict.answer.prompt.phrasing == phrasing]
        if phrasing == "probe" or not asked:
            continue
        whole = score_recall(asked, phrasing=phrasing)
        parts.append(RecallPart(phrasing=phrasing, style=None, recall=whole))
        for style in ALL_STYLES:
            in_style = [verdict for verdict in asked if verdict.answer.prompt.style == style]
            if in_style:
                recall = score_recall(in_style, phrasing=phrasing)
                parts.append(RecallPart(phrasing=phrasing, style=style, recall=recall))
    return tuple(parts)


def known_facts(verdicts: Sequence[Verdict]) -> frozenset[str]:
    """Return the ids of the facts answered right in more than half of their validation prompts.

    Of the untouched base, asked greedily, these are the facts that are no news to it (the novelty
    gate); of an adapter, those that it has learned. Unjudged verdicts are left out.
    """
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        prompt = verdict.answer.prompt
        if prompt.phrasing == "validation" and verdict.label != "unjudged":
            right[prompt.subject].append(verdict.is_correct)
    return frozenset(fact for fact, answers in right.items() if 2 * sum(answers) > len(answers))


def ring_changes(base: Sequence[Verdict], adapted: Sequence[Verdict]) -> tuple[RingChange, ...]:
    """Return what an adapter changed in each ring that was probed, in the order of `RINGS`.

    The same prompts asked of base and adapter are paired; a pair with an unjudged verdict is left
    out. Verdicts of prompts that are no probes are ignored.

    Raises:
        ValueError: If base and adapter were not asked the same probes, or one probe twice.
    """
    before, after = _by_prompt(base, "base"), _by_prompt(adapted, "adapted")
    if before.keys() != after.keys():
        raise ValueError(
            "adapted: base and adapter must be asked the same probes; "
            f"{len(before.keys() - after.keys())} were only asked of the base and "
            f"{len(after.keys() - before.keys())} only of the adapter"
        )
    pairs: defaultdict[str | None, list[tuple[bool, bool]]] = defaultdict(list)
    for prompt_id, verdict in before.items():
        other = after[prompt_id]
        if "unjudged" not in (verdict.label, other.label):
            ring = verdict.answer.prompt.ring
            pairs[ring].append((verdict.is_correct, other.is_correct))
    return tuple(_ring_change(ring, pairs[ring]) for ring in RINGS if ring in pairs)


def knowledge_loss(rings: Sequence[RingChange]) -> Estimate:
    """Return the mean over rings of the share of known probes that were lost: lower is better.

    Rings with fewer than `MIN_KNOWN_PER_RING` known probes are left out; with none left the loss
    is `NOT_MEASURED`.
    """
    return stratified_loss_interval(
        [(ring.lost, ring.known) for ring in rings if is_in_mean(ring)]
    )


def is_in_mean(ring: RingChange) -> bool:
    """Return whether a ring has enough known probes to count in the mean over rings."""
    return ring.known >= MIN_KNOWN_PER_RING


def fuar(
    rings: Sequence[RingChange], base: Sequence[Verdict], adapted: Sequence[Verdict]
) -> float | None:
    """Return how many probed facts were lost per new fact learned: lower is better, 0 is best.

    After Jang et al. (2022), "forgotten / (updated + acquired) ratio"; ours counts whole answers
    instead of points of accuracy. Every ring counts, small ones too. A fact is learned when it is
    among the `known_facts` of the adapter and not of the base. None when nothing was learned.
    """
    learned = known_facts(adapted) - known_facts(base)
    return sum(ring.lost for ring in rings) / len(learned) if learned else None


def _score_facts(verdicts: Iterable[Verdict]) -> Mapping[str, float]:
    """Return each fact's mean over styles of its share of right answers, by fact id."""
    right: defaultdict[str, defaultdict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for verdict in verdicts:
        if verdict.label != "unjudged":
            prompt = verdict.answer.prompt
            right[prompt.subject][prompt.style].append(verdict.is_correct)
    return {
        fact: math.fsum(sum(answers) / len(answers) for answers in styles.values()) / len(styles)
        for fact, styles in right.items()
    }


def _by_prompt(verdicts: Iterable[Verdict], side: str) -> dict[str, Verdict]:
    probes: dict[str, Verdict] = {}
    for verdict in verdicts:
        prompt = verdict.answer.prompt
        if prompt.phrasing != "probe":
            continue
        if prompt.id in probes:
            raise ValueError(f"{side}: the probe {prompt.text!r} was asked twice; ask it once")
        probes[prompt.id] = verdict
    return probes


def _ring_change(ring: str, pairs: Sequence[tuple[bool, bool]]) -> RingChange:
    known = sum(before for before, _ in pairs)
    lost = sum(before and not after for before, after in pairs)
    return RingChange(
        ring=ring,
        asked=len(pairs),
        known=known,
        lost=lost,
        gained=sum(after and not before for before, after in pairs),
        loss=wilson_interval(lost, known),
    )
