"""Scores from verdicts, each by hand arithmetic on a few of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.intervals import bootstrap_t_interval, stratified_loss_interval, wilson_interval
from data.measurements import NOT_MEASURED, Answer, Label, RingChange, Verdict
from data.probes import MIN_KNOWN_PER_RING
from data.prompts import Phrasing, Prompt, PromptStyle
from data.scoring import (
    fuar,
    knowledge_loss,
    known_facts,
    recall_parts,
    ring_changes,
    score_recall,
)

_LABELS: dict[str, Label] = {
    "+": "correct",
    "-": "incorrect",
    "0": "not_attempted",
    "?": "unjudged",
}


def _verdict(
    label: str,
    *,
    fact: str,
    style: PromptStyle = "qna",
    phrasing: Phrasing = "validation",
    wording: int = 0,
    ring: str | None = None,
) -> Verdict:
    question = f"{fact}, wording {wording}"
    prompt = Prompt(
        text=question,
        style=style,
        phrasing=phrasing,
        subject=fact,
        question=question,
        accepted=("yes",),
        ring=ring,
    )
    answer = Answer(prompt=prompt, text=label, tokens=1)
    return Verdict(answer=answer, label=_LABELS[label], judge="table")


def _verdicts(
    labels: str, *, fact: str, style: PromptStyle = "qna", phrasing: Phrasing = "validation"
) -> list[Verdict]:
    """Return one verdict per sign: + right, - wrong, 0 not attempted, ? unjudged."""
    return [
        _verdict(label, fact=fact, style=style, phrasing=phrasing, wording=wording)
        for wording, label in enumerate(labels)
    ]


def _probes(labels: str, ring: str) -> list[Verdict]:
    return [
        _verdict(label, fact=f"{ring} {i}", phrasing="probe", ring=ring)
        for i, label in enumerate(labels)
    ]


def _ring(ring: str, *, known: int, lost: int) -> RingChange:
    return RingChange(
        ring=ring, asked=known, known=known, lost=lost, gained=0, loss=wilson_interval(lost, known)
    )


def test_recall_is_a_mean_over_facts_of_means_over_styles() -> None:
    verdicts = [
        # Fact a: qna 2 of 2, plain 1 of 4: (1 + 1/4) / 2 = 5/8, not 3 of 6.
        *_verdicts("++", fact="a", style="qna"),
        *_verdicts("+---", fact="a", style="plain"),
        # Fact b: qna 0 of 1.
        *_verdicts("-", fact="b"),
    ]

    recall = score_recall(verdicts)

    assert recall.value == pytest.approx((5 / 8 + 0) / 2)
    assert recall.count == 2
    assert recall == bootstrap_t_interval([5 / 8, 0.0])


def test_not_attempting_is_wrong_and_unjudged_is_left_out() -> None:
    verdicts = [*_verdicts("+0??", fact="a"), *_verdicts("??", fact="b")]

    recall = score_recall(verdicts)

    assert recall.value == 0.5
    assert recall.count == 1


def test_a_style_of_which_nothing_was_judged_does_not_count_as_wrong() -> None:
    verdicts = [*_verdicts("+", fact="a"), *_verdicts("??", fact="a", style="plain")]

    assert score_recall(verdicts).value == 1


def test_only_validation_wordings_make_the_recall() -> None:
    verdicts = [
        *_verdicts("+-", fact="a"),
        *_verdicts("++++", fact="a", phrasing="trained"),
        *_verdicts("----", fact="a", phrasing="test"),
        *_probes("----", "general"),
    ]

    assert score_recall(verdicts).value == 0.5
    assert score_recall(verdicts, phrasing="test").value == 0


def test_without_a_judged_verdict_recall_is_not_measured() -> None:
    assert score_recall([]) == NOT_MEASURED
    assert score_recall(_verdicts("??", fact="a")) == NOT_MEASURED


@given(st.permutations([*_verdicts("++-", fact="a"), *_verdicts("+-?", fact="b", style="plain")]))
def test_the_order_of_verdicts_does_not_matter(verdicts: list[Verdict]) -> None:
    # (2/3 + 1/2) / 2
    assert score_recall(verdicts).value == pytest.approx(7 / 12)


def test_parts_are_reported_by_phrasing_and_then_by_style() -> None:
    verdicts = [
        *_verdicts("+", fact="a", phrasing="reverse", style="assistant"),
        *_verdicts("+-", fact="a", style="qna"),
        *_verdicts("--", fact="a", style="plain"),
        *_verdicts("?", fact="a", phrasing="test", style="qna"),
        *_probes("+", "general"),
    ]

    parts = [(part.phrasing, part.style, part.recall.value) for part in recall_parts(verdicts)]

    assert parts == [
        ("validation", None, 0.25),
        ("validation", "plain", 0.0),
        ("validation", "qna", 0.5),
        ("test", None, None),
        ("test", "qna", None),
        ("reverse", None, 1.0),
        ("reverse", "assistant", 1.0),
    ]
    assert recall_parts([]) == ()


def test_a_fact_is_known_when_more_than_half_of_its_novel_prompts_are_right() -> None:
    verdicts = [
        *_verdicts("++-", fact="two of three"),
        *_verdicts("+-", fact="one of two"),
        *_verdicts("+?", fact="one of one judged"),
        *_verdicts("?", fact="nothing judged"),
        *_verdicts("0", fact="not attempted"),
        *_verdicts("+++", fact="asked as trained", phrasing="trained"),
    ]

    assert known_facts(verdicts) == {"two of three", "one of one judged"}


def test_changes_are_counted_in_both_directions_ring_by_ring() -> None:
    base = [*_probes("++++--", "general"), *_probes("+-", "neighbours")]
    adapted = [*_probes("+--0+-", "general"), *_probes("++", "neighbours")]

    neighbours, general = ring_changes(base, adapted)

    assert (neighbours.ring, general.ring) == ("neighbours", "general")  # in the order of RINGS
    assert (general.asked, general.known, general.lost, general.gained) == (6, 4, 3, 1)
    assert general.loss == wilson_interval(3, 4)
    assert (neighbours.known, neighbours.lost, neighbours.gained) == (1, 0, 1)


def test_a_ring_of_which_the_base_knew_nothing_has_no_loss() -> None:
    (ring,) = ring_changes(_probes("--", "skills"), _probes("+-", "skills"))

    assert (ring.known, ring.gained) == (0, 1)
    assert ring.loss == NOT_MEASURED


def test_probes_are_paired_by_prompt_and_not_by_position() -> None:
    base = _probes("++-", "domain")
    adapted = _probes("-+-", "domain")

    assert ring_changes(base, adapted[::-1]) == ring_changes(base, adapted)


def test_pairs_with_an_unjudged_verdict_and_other_prompts_are_left_out() -> None:
    base = [*_probes("+?+", "general"), *_verdicts("+", fact="new")]
    adapted = [*_probes("-+?", "general"), *_verdicts("-", fact="other")]

    (ring,) = ring_changes(base, adapted)

    assert (ring.asked, ring.known, ring.lost) == (1, 1, 1)


def test_other_probes_than_the_bases_are_refused() -> None:
    base = _probes("+++", "general")

    with pytest.raises(ValueError, match=r"1 were only asked of the base and 0 only of"):
        ring_changes(base, base[:2])
    with pytest.raises(ValueError, match=r"adapted: .* asked twice"):
        ring_changes(base, [*base, base[0]])


def test_knowledge_loss_is_a_mean_over_rings_that_are_large_enough() -> None:
    rings = [
        _ring("neighbours", known=80, lost=40),
        _ring("general", known=MIN_KNOWN_PER_RING, lost=2),
        _ring("manners", known=MIN_KNOWN_PER_RING - 1, lost=19),
    ]

    loss = knowledge_loss(rings)

    assert loss.value == pytest.approx((40 / 80 + 2 / 20) / 2)
    assert loss == stratified_loss_interval([(40, 80), (2, 20)])


def test_without_a_ring_that_is_large_enough_loss_is_not_measured() -> None:
    assert knowledge_loss([]) == NOT_MEASURED
    assert knowledge_loss([_ring("general", known=MIN_KNOWN_PER_RING - 1, lost=3)]) == NOT_MEASURED


def _fuar_of(base: Sequence[str], adapted: Sequence[str]) -> float | None:
    rings = [_ring("general", known=60, lost=5), _ring("manners", known=10, lost=1)]
    before, after = (
        [
            verdict
            for fact, signs in enumerate(side)
            for verdict in _verdicts(signs, fact=f"{fact}")
        ]
        for side in (base, adapted)
    )
    return fuar(rings, before, after)


def test_fuar_is_facts_lost_per_fact_learned() -> None:
    # 6 lost; two are learned, the third was known, the fourth is right in half of its prompts.
    assert _fuar_of(["--", "+-", "++", "--"], ["++", "++", "++", "+-"]) == 6 / 2


def test_fuar_is_none_when_nothing_was_learned() -> None:
    assert _fuar_of(["--", "++"], ["+-", "++"]) is None
