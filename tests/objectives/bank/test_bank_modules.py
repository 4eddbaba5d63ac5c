"""Target modules are found by name, and a model without them is told apart clearly."""

from __future__ import annotations

import pytest
from torch import nn

from objectives.bank.modules import find_linear_modules
from objectives.models.base import BaseModel, ModelError


def test_attention_modules_come_before_mlp_modules(base: BaseModel) -> None:
    found = find_linear_modules(base.model)
    assert [module.part for module in found] == ["attention"] * 8 + ["mlp"] * 6
    assert found[0].name == "model.layers.0.self_attn.q_proj"
    down = next(module for module in found if module.suffix == "down_proj")
    assert (down.in_features, down.out_features) == (48, 32)
    assert not down.is_target_of("attention")
    assert down.is_target_of("mlp")
    assert down.is_target_of("all")


def test_a_quantised_stand_in_for_a_linear_module_is_found() -> None:
    class Packed(nn.Module):
        in_features = 8
        out_features = 16

    model = nn.ModuleDict({"q_proj": Packed(), "up_proj": nn.Linear(4, 6)})
    assert [module.suffix for module in find_linear_modules(model)] == ["q_proj", "up_proj"]


def test_an_unknown_model_is_refused_with_the_names_of_its_linear_modules() -> None:
    model = nn.ModuleDict({"c_attn": nn.Linear(4, 6), "q_proj": nn.Linear(4, 4)})
    with pytest.raises(ModelError, match=r"no mlp modules.*linear modules are: c_attn, q_proj"):
        find_linear_modules(model)
