"""Target modules are found by name and place, and a model without them is told apart clearly."""

from __future__ import annotations

from collections import Counter

import pytest
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from objectives.models.base import BaseModel, ModelError
from objectives.models.linear_modules import find_linear_modules, name_targets
from tests.objectives.architectures import CONFIGS, make_architecture

# Of each architecture: the query and value modules, the rest of attention, and the mlp.
EXPECTED = {
    "qwen2": ("q_proj v_proj", "k_proj o_proj", "gate_proj up_proj down_proj"),
    "mistral": ("q_proj v_proj", "k_proj o_proj", "gate_proj up_proj down_proj"),
    "gemma": ("q_proj v_proj", "k_proj o_proj", "gate_proj up_proj down_proj"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj down_proj"),
    "phi": ("q_proj v_proj", "k_proj dense", "fc1 fc2"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h dense_4h_to_h"),
    "falcon": ("query_key_value", "dense", "dense_h_to_4h dense_4h_to_h"),
    "bloom": ("query_key_value", "dense", "dense_h_to_4h dense_4h_to_h"),
    "gpt2": ("c_attn", "c_proj", "c_fc c_proj"),
    "gptj": ("q_proj v_proj", "k_proj out_proj", "fc_in fc_out"),
    "opt": ("q_proj v_proj", "k_proj out_proj", "fc1 fc2"),
    "starcoder2": ("q_proj v_proj", "k_proj o_proj", "c_fc c_proj"),
    "mpt": ("Wqkv", "out_proj", "up_proj down_proj"),
    # The experts are parameters; one is shared by all tokens.
    "qwen2_moe": ("q_proj v_proj", "k_proj o_proj", "gate_proj up_proj down_proj"),
    "mixtral": ("q_proj v_proj", "k_proj o_proj", ""),
}


@pytest.fixture(scope="session")
def tokenizer(talking_base: BaseModel) -> PreTrainedTokenizerFast:
    return talking_base.tokenizer


@pytest.mark.parametrize("name", CONFIGS)
def test_every_part_of_an_architecture_is_found(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = find_linear_modules(make_architecture(name, tokenizer).model)
    kinds = [(module.is_target_of("query+value"), module.part) for module in found]
    for kind, suffixes in zip(
        ((True, "attention"), (False, "attention"), (False, "mlp")), EXPECTED[name], strict=True
    ):
        own = Counter(
            module.suffix for module, its in zip(found, kinds, strict=True) if its == kind
        )
        assert own == Counter(suffixes.split() * 2), "both layers and nothing else"
    assert kinds == sorted(kinds, key=lambda kind: (kind[1] == "mlp", not kind[0]))
    for module in found:
        weight = module.module.weight
        assert isinstance(weight, Tensor)
        rows, columns = weight.shape
        assert {rows, columns} == {module.in_features, module.out_features}
        assert module.is_transposed == (name == "gpt2")
        if module.is_transposed:
            assert (rows, columns) == (module.in_features, module.out_features)


def test_a_quantised_stand_in_for_a_linear_module_is_found() -> None:
    class Packed(nn.Module):
        in_features = 8
        out_features = 16

    model = in_a_layer(q_proj=Packed(), up_proj=nn.Linear(4, 6))
    assert [module.suffix for module in find_linear_modules(model)] == ["q_proj", "up_proj"]


def test_an_unknown_architecture_is_read_by_what_its_modules_stand_in() -> None:
    model = in_a_layer(
        self_attention=nn.ModuleDict({"in_all": nn.Linear(4, 12), "out": nn.Linear(4, 4)}),
        ffn=nn.ModuleDict({"first": nn.Linear(4, 8), "second": nn.Linear(8, 4)}),
    )
    found = find_linear_modules(model)
    assert [module.suffix for module in found] == ["in_all", "out", "first", "second"]
    assert [module.part for module in found] == ["attention"] * 2 + ["mlp"] * 2
    # Nothing says which of them make queries and values.
    assert [module.is_target_of("query+value") for module in found] == [True, True, False, False]


def test_images_sounds_routers_and_experts_have_no_adapters() -> None:
    layer = {"self_attn": {"q_proj": 4, "v_proj": 4}, "mlp": {"up_proj": 4, "gate": 4}}
    experts = {"mlp": {"experts": {"0": {"up_proj": 4}}, "shared_expert": {"up_proj": 4}}}
    model = build(
        {
            "vision_tower": {"layers": {"0": layer}},
            "audio_encoder": {"layers": {"0": layer}},
            "text": {"layers": {"0": layer, "1": experts}},
            "projector": {"up_proj": 4},
            "lm_head": 4,
        }
    )
    assert [module.name for module in find_linear_modules(model)] == [
        "text.layers.0.self_attn.q_proj",
        "text.layers.0.self_attn.v_proj",
        "text.layers.0.mlp.up_proj",
        "text.layers.1.mlp.shared_expert.up_proj",
    ]


def test_an_unknown_model_is_refused_with_the_names_of_its_linear_modules() -> None:
    model = in_a_layer(mixer=nn.Linear(4, 6), q_proj=nn.Linear(4, 4))
    with pytest.raises(ModelError, match=r"no mlp modules.*linear modules are: mixer, q_proj"):
        find_linear_modules(model)


def test_targets_are_named_as_shortly_as_peft_can_tell_them_apart() -> None:
    layer = {"attn": {"c_proj": 4, "c_attn": 4}, "mlp": {"c_proj": 4, "c_fc": 4}}
    model = build({"h": {"0": layer, "1": layer}})
    attention = [f"h.{n}.attn.{name}" for n in range(2) for name in ("c_proj", "c_attn")]
    mlp = [f"h.{n}.mlp.{name}" for n in range(2) for name in ("c_proj", "c_fc")]
    assert name_targets(model, attention) == ["attn.c_proj", "c_attn"]
    assert name_targets(model, [*attention, *mlp]) == ["c_attn", "c_fc", "c_proj"]
    assert name_targets(model, ["h.1.mlp.c_fc"]) == ["1.mlp.c_fc"]


def in_a_layer(**modules: nn.Module) -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict(modules)])})


def build(shape: dict[str, object] | int) -> nn.Module:
    """Return modules within modules; a number is a linear module of so many features."""
    if isinstance(shape, int):
        return nn.Linear(shape, shape)
    return nn.ModuleDict({name: build(inner) for name, inner in shape.items()})  # type: ignore[arg-type]
