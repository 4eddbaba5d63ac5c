"""Attention within short rows is PyTorch's own attention to each row, in value and in gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from objectives.models.passes.blocks import lay_in_blocks
from objectives.models.passes.packed_attention import _sliding_mask
from objectives.models.passes.short_rows import attend_in_short_rows, hide_unseen, suits_short_rows

CPU = torch.device("cpu")
HEADS, FEATURES = 3, 4


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    window=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 100),
)
def test_it_equals_attention_to_each_row_alone(
    lengths: list[list[int]], window: int | None, seed: int
) -> None:
    ends = np.cumsum([length for block in lengths for length in block])
    rows = iter(np.split(np.arange(ends[-1]), ends[:-1]))
    groups = [[next(rows) for _ in block] for block in lengths]
    blocks = lay_in_blocks(groups, int(ends[-1]), device=CPU)
    generator = torch.Generator().manual_seed(seed)
    states = [
        torch.randn(int(ends[-1]), HEADS, FEATURES, generator=generator, requires_grad=True)
        for _ in range(3)
    ]
    weights = torch.randn(int(ends[-1]), HEADS, FEATURES, generator=generator)

    query, key, value = (each.flatten(0, 1) for each in states)
    ours = attend_in_short_rows(
        query,
        key,
        value,
        blocks=blocks.per_head(HEADS, CPU),
        hidden=[
            hide_unseen(size, _sliding_mask(window, size, CPU), query) for _, size in blocks.shapes
        ],
        scaling=0.7,
    ).view_as(weights)
    expected = torch.cat(
        [
            _attend([each[torch.from_numpy(row)] for each in states], window)
            for block in groups
            for row in block
        ]
    )
    torch.testing.assert_close(ours, expected)
    for mine, reference in zip(
        torch.autograd.grad((ours * weights).sum(), states),
        torch.autograd.grad((expected * weights).sum(), states),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference)


def _attend(states: list[Tensor], window: int | None) -> Tensor:
    """Return the attention (tokens, heads, features) of one row."""
    mask = _sliding_mask(window, len(states[0]), CPU)
    query, key, value = (each.transpose(0, 1)[None] for each in states)
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=0.7
    )
    return attended[0].transpose(0, 1)


def test_it_is_used_for_short_rows_of_models_whose_attention_it_computes() -> None:
    states = torch.zeros(1, HEADS, 6, FEATURES)
    short = lay_in_blocks([[np.arange(3), np.arange(3, 6)]], 6, device=CPU)
    long = lay_in_blocks([[np.arange(200)]], 200, device=CPU)
    asked = {"scaling": 0.5, "dropout": 0.0, "position_ids": torch.arange(6), "softcap": None}
    module = nn.Identity()
    assert suits_short_rows(module, states, states, short, asked)
    assert not suits_short_rows(module, states, states, long, asked)
    assert not suits_short_rows(module, states, states[:, :1], short, asked), "fewer key heads"
    assert not suits_short_rows(module, states.bfloat16(), states.bfloat16(), short, asked)
    for name, value in (("softcap", 30.0), ("dropout", 0.1), ("position_bias", states)):
        assert not suits_short_rows(module, states, states, short, {**asked, name: value})
    module.is_causal = False  # type: ignore[assignment]
    assert not suits_short_rows(module, states, states, short, asked)


@pytest.mark.parametrize("heads", [1, 4])
def test_blocks_per_head_lay_each_head_of_a_group_by_itself(heads: int) -> None:
    blocks = lay_in_blocks([[np.array([3, 0])], [np.array([1]), np.array([4, 5])]], 6, device=CPU)
    per_head = blocks.per_head(heads, CPU)
    values = torch.arange(6 * heads).view(6, heads)
    laid = per_head.split(per_head.lay(values.flatten()))
    for block, of_heads in zip(blocks.split(blocks.lay(values)), laid, strict=True):
        assert (of_heads.view(-1, heads, of_heads.shape[1]) == block.transpose(1, 2)).all()
    members = values[torch.tensor([0, 1, 3, 4, 5])].flatten()
    assert (per_head.collect(per_head.lay(values.flatten())) == members).all()
    gradient = torch.ones(6 * heads)
    assert per_head.lay_gradient(gradient).sum() == 5 * heads, "a filler has none"
