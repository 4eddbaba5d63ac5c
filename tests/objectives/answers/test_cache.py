"""The cache that grows in place holds what a plain one holds, whatever rows come, go and join."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from objectives.answers.cache import join_states, keeps_everything, make_cache, take_states
from objectives.models.base import BaseModel

LAYERS, HEADS, FEATURES = 2, 2, 3

Pair = tuple[Tensor, Tensor]


class TwoCaches:
    """The cache under test beside a plain one, which is given the same and must hold the same."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._numbers = torch.Generator().manual_seed(0)
        self._returned: list[tuple[Tensor, Tensor]] = []
        self.start()

    def start(self) -> None:
        """Begin with empty caches."""
        self.roomy = make_cache(self._base.model)
        self.plain = DynamicCache(config=self._base.model.config)

    @property
    def rows(self) -> int:
        return len(self.plain.layers[0].keys)

    @property
    def width(self) -> int:
        return int(self.plain.get_seq_length())

    def append(self, rows: int, tokens: int) -> None:
        """Take in random keys and values of new tokens in every layer."""
        for layer in range(LAYERS):
            keys, values = torch.randn(
                2, rows, HEADS, tokens, FEATURES, generator=self._numbers
            ).unbind()
            returned = self.roomy.update(keys, values, layer)
            expected = self.plain.update(keys, values, layer)
            for mine, theirs in zip(returned, expected, strict=True):
                assert torch.equal(mine, theirs)
                self._returned.append((mine, theirs))

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        for cache in (self.roomy, self.plain):
            cache.batch_select_indices(torch.tensor(rows))

    def take_out(self, first_column: int) -> tuple[list[Pair], list[Pair]]:
        """Return what both hold from a column on."""
        return (
            take_states(self.roomy, first_column=first_column),
            [
                (layer.keys[:, :, first_column:], layer.values[:, :, first_column:])
                for layer in self.plain.layers
            ],
        )

    def put_first(self, taken: tuple[list[Pair], list[Pair]]) -> None:
        """Put rows that were taken out before the present ones."""
        roomy, plain = taken
        width = max(self.width, plain[0][0].shape[2])
        join_states(self.roomy, roomy, width=width)
        for layer, (keys, values) in zip(self.plain.layers, plain, strict=True):
            layer.keys = _join_padded(keys, layer.keys, width)
            layer.values = _join_padded(values, layer.values, width)

    def compare(self) -> None:
        """Hold the caches against each other, and all that was ever returned."""
        assert self.roomy.get_seq_length() == self.plain.get_seq_length()
        for roomy, plain in zip(self.roomy.layers, self.plain.layers, strict=True):
            assert torch.equal(roomy.keys, plain.keys)
            assert torch.equal(roomy.values, plain.values)
        assert all(torch.equal(mine, theirs) for mine, theirs in self._returned)


def _join_padded(first: Tensor, second: Tensor, width: int) -> Tensor:
    return torch.cat([pad(part, (0, 0, width - part.shape[2], 0)) for part in (first, second)])


@settings(deadline=None)
@given(data=st.data())
def test_any_course_of_rows_leaves_what_copying_would_leave(
    talking_base: BaseModel, data: st.DataObject
) -> None:
    caches = TwoCaches(talking_base)
    tokens = st.one_of(st.just(1), st.integers(1, 30))  # more than there is room for, too
    caches.append(data.draw(st.integers(1, 4)), data.draw(tokens))
    for action in data.draw(st.lists(st.sampled_from(["append", "select", "join"]), max_size=8)):
        if action == "append":
            caches.append(caches.rows, data.draw(tokens))
        elif action == "select":
            row = st.integers(0, caches.rows - 1)
            caches.select(data.draw(st.lists(row, min_size=1, max_size=6)))
        else:
            taken = caches.take_out(data.draw(st.integers(0, caches.width - 1)))
            caches.start()
            caches.append(data.draw(st.integers(1, 3)), data.draw(tokens))
            caches.put_first(taken)
        caches.compare()


def test_a_token_is_added_without_copying_those_before_it(talking_base: BaseModel) -> None:
    caches = TwoCaches(talking_base)
    caches.append(2, 5)
    caches.append(2, 1)  # makes room
    where = caches.roomy.layers[0].keys.data_ptr()
    for _ in range(23):
        caches.append(2, 1)
        assert caches.roomy.layers[0].keys.data_ptr() == where
    caches.append(2, 1)  # room was for 24
    assert caches.roomy.layers[0].keys.data_ptr() != where
    caches.compare()


def test_rows_join_on_the_right_behind_zeros(talking_base: BaseModel) -> None:
    cache = make_cache(talking_base.model)
    for layer in range(LAYERS):
        cache.update(torch.full((1, 1, 1, 1), 7.0), torch.full((1, 1, 1, 1), 8.0), layer)
    earlier = [(torch.full((2, 1, 3, 1), 1.0), torch.full((2, 1, 3, 1), 2.0))] * LAYERS
    join_states(cache, earlier, width=4)
    for layer in cache.layers:
        assert layer.keys[:, 0, :, 0].tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 7]]
        assert layer.values[:, 0, :, 0].tolist() == [[0, 2, 2, 2], [0, 2, 2, 2], [0, 0, 0, 8]]


def test_a_sliding_window_does_not_keep_everything(
    talking_base: BaseModel, windowed_base: BaseModel
) -> None:
    assert keeps_everything(make_cache(talking_base.model))
    assert not keeps_everything(make_cache(windowed_base.model))
