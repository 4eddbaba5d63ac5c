"""Chooses the part of all prompts that rungs ask: always the same, and spread evenly."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from data.probes import MIN_KNOWN_PER_RING
from data.prompts import Prompt


def choose_prompts(prompts: Sequence[Prompt], *, share: float) -> tuple[Prompt, ...]:
    """Return a share of the prompts about every fact, in their order.

    Each fact keeps the same share of its prompts, rounded, and at least one. They take turns at
    the prompt styles, from fact to fact as well: no style is asked more than once more often than
    another of a fact that is asked all wordings in all styles, nor over all such facts. Wordings
    take turns, too. What is chosen depends on the prompts alone, not on their order of facts.

    Args:
        prompts: About all facts.
        share: Above 0 and at most 1.
    """
    by_fact: defaultdict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_fact[prompt.subject].append(prompt)
    chosen: set[Prompt] = set()
    for number, fact in enumerate(sorted(by_fact)):
        own = by_fact[fact]
        count = max(1, round(share * len(own)))
        chosen.update(_in_turns(own, first_style=len(chosen), first_wording=number)[:count])
    return tuple(prompt for prompt in prompts if prompt in chosen)


def choose_probes(
    prompts: Sequence[Prompt], known: Sequence[bool], *, share: float
) -> tuple[int, ...]:
    """Return the places of a share of the probes in every ring, of the known and of the others.

    Of a ring's known probes at least `MIN_KNOWN_PER_RING` are kept, or all if there are fewer: a
    ring that counts in the knowledge loss then counts in that of the part. Those kept take turns
    at the styles that they are asked in. Which they are follows from their ids.

    Args:
        prompts: One of each probe.
        known: Whether the untouched base answers it.
        share: Above 0 and at most 1.
    """
    strata: defaultdict[tuple[str | None, bool], list[int]] = defaultdict(list)
    for place, (prompt, is_known) in enumerate(zip(prompts, known, strict=True)):
        strata[prompt.ring, is_known].append(place)
    chosen: list[int] = []
    for (_, are_known), places in strata.items():
        count = round(share * len(places))
        if are_known:
            count = max(count, min(MIN_KNOWN_PER_RING, len(places)))
        places.sort(key=lambda place: prompts[place].subject)
        seen: Counter[str] = Counter()
        order: list[tuple[int, str, int]] = []
        for place in places:
            style = prompts[place].style
            order.append((seen[style], style, place))
            seen[style] += 1
        chosen += [place for _, _, place in sorted(order)[:count]]
    return tuple(sorted(chosen))


def _in_turns(prompts: Sequence[Prompt], *, first_style: int, first_wording: int) -> list[Prompt]:
    """Return prompts about one fact so that styles take turns, and within a style wordings do."""
    styles = list(dict.fromkeys(prompt.style for prompt in prompts))
    wordings = list(dict.fromkeys(prompt.question for prompt in prompts))

    def turn(prompt: Prompt) -> tuple[int, int]:
        style = styles.index(prompt.style)
        wording = wordings.index(prompt.question)
        return (
            (wording - style - first_wording) % len(wordings),
            (style - first_style) % len(styles),
        )

    return sorted(prompts, key=turn)
