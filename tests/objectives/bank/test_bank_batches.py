"""Documents become examples and batches without losing a token; passes are laid out right."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.recipes import Packing
from objectives.bank.batches import count_predicted, cut_examples, lay_out, make_batches
from objectives.models.base import BaseModel
from objectives.models.passes import reading

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


def test_a_pass_predicts_every_next_token_and_no_padding(base: BaseModel) -> None:
    inputs = lay_out(base, [((1, 5, 6, 2), (1, 7)), ((1, 8, 2),)])
    # Nothing is predicted from an example's last token, so it is not read.
    assert inputs.rows.token_ids.tolist() == [[1, 5, 6, 1, 1, 8]]
    assert [entries.tolist() for entries in inputs.entries_of] == [[0, 1, 2, 3], [4, 5]]
    assert [places.tolist() for places in inputs.places_of] == [[0, 1, 2, 3], [0, 1]]
    assert inputs.predicting.tolist() == [0, 1, 2, 3, 4, 5]
    assert inputs.labels.tolist() == [5, 6, 2, 7, 8, 2]
    # The first slot's four predictions weigh a quarter each, the second's two a half.
    assert inputs.weights.tolist() == [0.25] * 4 + [0.5] * 2
    assert inputs.counts.tolist() == [4, 2]
    assert count_predicted(((1, 5, 6, 2), (1, 7))) == 4


def test_padded_rows_predict_the_same_from_other_places(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "reads_packed", lambda _model: False)
    inputs = lay_out(base, [((1, 5, 6, 2), (1, 7)), ((1, 8, 2),)])
    assert inputs.rows.token_ids.tolist() == [[1, 5, 6], [1, 0, 0], [1, 8, 0]]
    assert [places.tolist() for places in inputs.places_of] == [[0, 1, 2, 3], [0, 1]]
    assert [len(entries) for entries in inputs.entries_of] == [6, 3]
    assert inputs.predicting.tolist() == [0, 1, 2, 3, 6, 7]
    assert inputs.labels.tolist() == [5, 6, 2, 7, 8, 2]
