"""Documents become examples and batches without losing a token; passes are laid out right."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.recipes import Packing
from objectives.bank.batches import count_predicted, cut_examples, lay_out, make_batches
from objectives.bank.routing import group_by_size, index_slots, route_rows

documents_of_text = st.lists(
    st.lists(st.integers(4, 99), max_size=40).map(lambda words: [1, *words, 2]), max_size=12
)


@given(documents_of_text, st.integers(8, 30), st.sampled_from(["separate", "joined"]))
def test_no_token_is_lost_moved_or_left_alone(
    documents: list[list[int]], cutoff: int, packing: Packing
) -> None:
    examples = cut_examples(documents, cutoff=cutoff, packing=packing)
    assert list(chain.from_iterable(examples)) == list(chain.from_iterable(documents))
    assert all(2 <= len(example) <= cutoff for example in examples)
    batches = make_batches(examples, 4)
    assert list(chain.from_iterable(batches)) == examples
    assert all(len(batch) == 4 for batch in batches[:-1])


@given(documents_of_text, st.integers(8, 30))
def test_separate_documents_share_no_example_and_short_ones_stay_whole(
    documents: list[list[int]], cutoff: int
) -> None:
    examples = cut_examples(documents, cutoff=cutoff, packing="separate")
    assert len(examples) == sum(-(-len(document) // cutoff) for document in documents)
    for document in documents:
        if len(document) <= cutoff:
            assert tuple(document) in examples


def test_joined_documents_fill_blocks_of_the_cutoff() -> None:
    documents = [[1, 10, 11, 12, 2], [1, 13, 14, 2], [1, 15, 16, 17, 18, 19, 2]]
    assert cut_examples(documents, cutoff=8, packing="joined") == [
        (1, 10, 11, 12, 2, 1, 13, 14),
        (2, 1, 15, 16, 17, 18, 19, 2),
    ]


def test_a_last_token_is_not_left_without_anything_to_predict_it_from() -> None:
    document = list(range(1, 18))  # 17 tokens: 8 + 8 + 1
    assert cut_examples([document], cutoff=8, packing="separate") == [
        (1, 2, 3, 4, 5, 6, 7, 8),
        (9, 10, 11, 12, 13, 14, 15),
        (16, 17),
    ]


@pytest.mark.parametrize("packing", ["separate", "joined"])
def test_a_document_of_one_token_makes_no_example(packing: Packing) -> None:
    assert cut_examples([[2]], cutoff=8, packing=packing) == []


def test_a_pass_predicts_every_next_token_and_no_padding() -> None:
    inputs = lay_out([((1, 5, 6, 2), (1, 7)), ((1, 8, 2),)], pad_id=0, device=torch.device("cpu"))
    assert inputs.token_ids.tolist() == [[1, 5, 6, 2], [1, 7, 0, 0], [1, 8, 2, 0]]
    assert inputs.predicting.tolist() == [0, 1, 2, 4, 8, 9]
    assert inputs.labels.tolist() == [5, 6, 2, 7, 8, 2]
    # The first slot's four predictions weigh a quarter each, the second's two a half.
    assert inputs.weights.tolist() == [0.25] * 4 + [0.5] * 2
    assert inputs.counts.tolist() == [4, 2]
    assert count_predicted(((1, 5, 6, 2), (1, 7))) == 4


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12))
def test_every_routed_row_comes_back_to_its_own_place(row_slots: list[int]) -> None:
    routing = route_rows(row_slots, torch.device("cpu"))
    assert list(routing.slots) == sorted(set(row_slots) - {-1})
    if not routing.slots:
        return
    rows = torch.arange(len(row_slots)).view(-1, 1, 1)
    moved = routing.to_slots(rows)
    assert moved.shape == (len(routing.slots), routing.rows_per_slot, 1)
    for position, slot in enumerate(routing.slots):
        assert all(row_slots[row] == slot for row in moved[position].flatten().tolist())
    if routing.adapted is None or routing.places is None:
        assert moved.flatten().tolist() == list(range(len(row_slots)))
    else:
        assert moved.flatten()[routing.places].tolist() == routing.adapted.tolist()
        adapted = [row for row, slot in enumerate(row_slots) if slot >= 0]
        assert sorted(routing.adapted.tolist()) == adapted


def test_slots_that_follow_each_other_are_a_slice() -> None:
    assert index_slots([2, 3, 4]) == slice(2, 5)
    assert index_slots([0, 2]) == [0, 2]


@given(st.dictionaries(st.integers(0, 20), st.integers(2, 512), max_size=12))
def test_padding_never_more_than_doubles_a_row(lengths: dict[int, int]) -> None:
    groups = group_by_size(lengths)
    assert sorted(chain.from_iterable(groups)) == sorted(lengths)
    for group in groups:
        assert group == sorted(group)
        assert max(lengths[slot] for slot in group) <= 2 * min(lengths[slot] for slot in group)


def test_rows_of_like_length_share_one_pass() -> None:
    assert group_by_size({0: 28, 1: 17, 2: 30, 3: 256, 4: 15}) == [[3], [0, 1, 2, 4]]
