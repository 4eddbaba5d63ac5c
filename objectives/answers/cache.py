"""A key/value cache that grows without copying itself at every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from objectives.models.passes.reading import reads_packed

# Tokens that a layer has room for when it is copied; answers are seldom longer.
_ROOM_TOKENS = 24


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """As its parent, which copies all keys and values whenever a token is added."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._whole: list[Tensor] = []  # keys and values, with the room behind them

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in keys and values (rows, heads, new tokens, features); return all."""
        if not self.is_initialized:
            super().update(key_states, value_states, *args, **kwargs)
            return self.keys, self.values
        before = self.get_seq_length()
        length = before + key_states.shape[2]
        if not self._whole or self._whole[0].shape[2] < length:
            self.join([], width=before, room=max(_ROOM_TOKENS, key_states.shape[2]))
        for whole, states in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, before:length] = states
        self._look_at(length)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows named."""
        if not self._whole:
            super().batch_select_indices(indices)
            return
        length = self.get_seq_length()
        self._whole = [whole.index_select(0, indices) for whole in self._whole]
        self._look_at(length)

    def join(
        self, earlier: list[tuple[Tensor, Tensor]], *, width: int, room: int = _ROOM_TOKENS
    ) -> None:
        """Put rows before the present ones, all padded on the left to `width` tokens."""
        parts = [*earlier, (self.keys, self.values)]
        heads = self.keys.shape[1]
        rows = sum(len(keys) for keys, _ in parts)
        self._whole = []
        for states in zip(*parts, strict=True):
            whole = states[0].new_empty((rows, heads, width + room, states[0].shape[3]))
            for own, part in zip(whole.split([len(part) for part in states]), states, strict=True):
                padding = width - part.shape[2]
                own[:, :, :padding] = 0
                own[:, :, padding:width] = part
            self._whole.append(whole)
        self._look_at(width)

    def _look_at(self, length: int) -> None:
        self.keys, self.values = (whole[:, :, :length] for whole in self._whole)


def make_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache for a model, whatever kinds of layers it has."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def keeps_everything(cache: DynamicCache) -> bool:
    """Return whether rows can be joined and what was read last can be hidden again.

    A sliding window has moved on by then, and a recurrent state has taken it in.
    """
    return all(type(layer) is _RoomyLayer for layer in cache.layers)


def may_share_beginnings(model: PreTrainedModel) -> bool:
    """Return whether rows that begin alike can be read once by `share_beginnings`."""
    return reads_packed(model) and keeps_everything(make_cache(model))


def select_rows(cache: DynamicCache, places: Tensor) -> None:
    """Keep the rows at these places, wherever the layers' keys and values are."""
    for layer in cache.layers:
        layer.batch_select_indices(places.to(getattr(layer, "device", places.device)))


def take_states(cache: DynamicCache, *, first_column: int) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's keys and values (rows, heads, tokens, features) from a column on."""
    return [
        (layer.keys[:, :, first_column:], layer.values[:, :, first_column:])
        for layer in cache.layers
    ]


def join_states(cache: DynamicCache, earlier: list[tuple[Tensor, Tensor]], *, width: int) -> None:
    """Put the rows of `earlier` before those of a cache, all padded on the left to `width`."""
    for layer, states in zip(cache.layers, earlier, strict=True):
        layer.join([states], width=width)
