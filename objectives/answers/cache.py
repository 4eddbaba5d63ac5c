"""A key/value cache that a decoding step adds a column to without copying what is there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

# Columns of room to grow by: what a typical short answer needs, so that most answers cost one copy.
_SPARE_COLUMNS = 16


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values (rows, heads, tokens, features) as views of tensors with spare columns.

    transformers' own layer concatenates, which copies the whole cache at every step.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new columns and return all keys and values."""
        used = self.get_seq_length()
        end = used + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not used or end > self._room[0].shape[-2]:
            self._room = tuple(
                torch.cat([old, new_empty], dim=-2)
            )
