"""The operations that the GPU benchmark says training needs are those that it does."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import (
    REHEARSAL,
    admit,
    build_large,
    make_pocket_trials,
    measure_limit,
    operations_per_token,
)
from data.scenarios import load_scenario
from objectives.bank import Bank
from objectives.bank.batches import count_predicted
from objectives.models.base import BaseModel
from objectives.models.load import load_base_model
from objectives.models.machine.footprint import shape_of_model
from objectives.models.passes.reading import reads_packed
from objectives.models.sources import POCKET


@pytest.fixture(scope="module")
def pocket() -> BaseModel:
    torch.set_num_threads(1)
    return load_base_model(POCKET, device="cpu")


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_step_does_what_is_counted(pocket: BaseModel, is_packed: bool) -> None:
    base = build_large(REHEARSAL.large, pocket.tokenizer, "cpu") if is_packed else pocket
    trials = make_pocket_trials(load_scenario(None), REHEARSAL, epochs=1)[2:3]
    rank = trials[0].recipe.rank
    bank = Bank(base, slots=1, max_rank=rank)
    admit(bank, trials)
    tokens = count_predicted(trials[0].batches(base, 0)[0])
    assert reads_packed(base.model), "which is tried out once, and is no part of a step"
    with FlopCounterMode(display=False) as counter:
        bank.step()
    expected = tokens * operations_per_token(shape_of_model(base.model), rank=rank)
    # Attention between the tokens of a text is left out, and the first layer's inputs need no
    # gradient.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)


def test_a_device_has_a_limit() -> None:
    assert measure_limit(REHEARSAL) > 1e6
