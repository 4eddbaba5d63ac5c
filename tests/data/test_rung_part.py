"""The part that rungs ask is always the same, and spread evenly."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.facts import Fact
from data.probes import MIN_KNOWN_PER_RING, RINGS, Probe
from data.prompts import ChatFrame, Prompt, fact_prompts
from data.rung_part import choose_probes, choose_prompts

CHAT = ChatFrame(before="<user>", after="<model>")
shares = st.floats(min_value=0.01, max_value=1)


def make_prompts(facts: int, wordings: int, chat: ChatFrame | None) -> tuple[Prompt, ...]:
    return fact_prompts(
        [
            Fact(
                question=f"Who is {number}?",
                answer=f"name {number}",
                novel_validation=tuple(f"Tell me {n} of {number}." for n in range(wordings)),
            )
            for number in range(facts)
        ],
        ["validation"],
        chat=chat,
    )


grids = st.builds(
    make_prompts,
    facts=st.integers(1, 12),
    wordings=st.integers(1, 5),
    chat=st.sampled_from([None, CHAT]),
)


@given(prompts=grids, share=shares)
def test_every_fact_keeps_the_same_share(prompts: tuple[Prompt, ...], share: float) -> None:
    chosen = choose_prompts(prompts, share=share)
    assert len(set(chosen)) == len(chosen)
    assert [prompt for prompt in prompts if prompt in set(chosen)] == list(chosen)
    of_fact = Counter(prompt.subject for prompt in prompts)
    kept = Counter(prompt.subject for prompt in chosen)
    for fact, count in of_fact.items():
        assert kept[fact] == max(1, round(share * count))


@given(prompts=grids, share=shares)
def test_styles_are_asked_equally_often(prompts: tuple[Prompt, ...], share: float) -> None:
    chosen = choose_prompts(prompts, share=share)
    styles = {prompt.style for prompt in prompts}
    by_fact = [[p for p in chosen if p.subject == fact] for fact in {p.subject for p in chosen}]
    for some in (chosen, *by_fact):
        counts = [sum(prompt.style == style for prompt in some) for style in styles]
        assert max(counts) - min(counts) <= 1


@given(prompts=grids, share=shares, seed=st.integers(0, 99))
def test_the_order_of_facts_does_not_matter(
    prompts: tuple[Prompt, ...], share: float, seed: int
) -> None:
    facts = list(dict.fromkeys(prompt.subject for prompt in prompts))
    random.Random(seed).shuffle(facts)
    shuffled = [p for fact in facts for p in prompts if p.subject == fact]
    assert set(choose_prompts(shuffled, share=share)) == set(choose_prompts(prompts, share=share))


def test_a_quarter_of_three_wordings_in_four_styles_is_three_prompts_of_a_fact() -> None:
    chosen = choose_prompts(make_prompts(8, 3, None), share=0.25)
    assert Counter(prompt.subject for prompt in chosen).most_common()[0][1] == 3
    assert len(chosen) == 24
    assert set(Counter(prompt.style for prompt in chosen).values()) == {6}
    wordings = Counter(prompt.question.split(" of ")[0] for prompt in chosen)
    assert min(wordings.values()) >= 6


rings = st.lists(st.tuples(st.sampled_from(RINGS), st.booleans()), max_size=300)


@given(asked=rings, share=shares, chat=st.sampled_from([None, CHAT]))
def test_of_each_ring_known_and_unknown_probes_keep_their_share_or_the_least(
    asked: list[tuple[str, bool]], share: float, chat: ChatFrame | None
) -> None:
    prompts = [
        Probe(ring=ring, question=f"What is {n}?", answer=str(n)).prompt(chat=chat)  # type: ignore[arg-type]
        for n, (ring, _) in enumerate(asked)
    ]
    known = [is_known for _, is_known in asked]
    places = choose_probes(prompts, known, share=share)
    assert list(places) == sorted(set(places))
    for ring in RINGS:
        for is_known in (True, False):
            there = [n for n, kind in enumerate(asked) if kind == (ring, is_known)]
            kept = [n for n in there if n in places]
            least = min(MIN_KNOWN_PER_RING, len(there)) if is_known else 0
            assert len(kept) == max(round(share * len(there)), least)


@given(asked=rings, share=shares, number=st.integers(0, 299))
def test_one_probe_more_or_less_known_changes_hardly_any_other(
    asked: list[tuple[str, bool]], share: float, number: int
) -> None:
    prompts = [
        Probe(ring=ring, question=f"What is {n}?", answer=str(n)).prompt()  # type: ignore[arg-type]
        for n, (ring, _) in enumerate(asked)
    ]
    known = [is_known for _, is_known in asked]
    before = set(choose_probes(prompts, known, share=share))
    if number < len(known):
        known[number] = not known[number]
    after = set(choose_probes(prompts, known, share=share))
    # Styles take turns: one probe less moves up at most one of each style.
    assert len((before ^ after) - {number}) <= 4


def test_a_fact_with_one_wording_in_one_style_is_always_asked() -> None:
    prompts = fact_prompts(
        [Fact(question="Q?", answer="a", novel_validation=("W?",))], ["validation"], ["qna"]
    )
    assert choose_prompts(prompts, share=0.01) == prompts


def test_prompts_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        choose_probes(make_prompts(1, 1, None), [True], share=0.5)
