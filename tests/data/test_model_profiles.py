"""The packaged profiles are consistent, and their weights are added up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data.model_profiles import ModelProfile, load_profiles

TINY = ModelProfile(
    name="tiny",
    hub_id="some/tiny",
    architecture="llama",
    parameters=5_000,
    hidden_size=8,
    layers=2,
    heads=4,
    key_value_heads=2,
    head_size=2,
    intermediate_size=16,
    vocabulary=100,
    context_tokens=64,
    licence="MIT",
)


def test_linear_parameters_are_those_of_attention_and_mlp() -> None:
    # Query and output: 2 * 8 * 4 * 2. Key and value: 2 * 8 * 2 * 2. MLP: 3 * 8 * 16.
    assert TINY.linear_parameters == 2 * (128 + 64 + 384) == 1152
    assert replace(TINY, gated_mlp=False).linear_parameters == 2 * (128 + 64 + 256)


def test_weights_take_their_bits() -> None:
    assert TINY.weight_bytes() == 2 * 5_000
    # 1152 weights of half a byte, in 9 groups of 20 bits more each; 3848 others of two bytes.
    assert TINY.weight_bytes(bits=4, group_size=128) == 576 + 9 * 20 // 8 + 7696
    assert TINY.weight_bytes(bits=4) == 576 + 7696
    assert replace(TINY, bits=4).weight_bytes() == 576 + 7696


@pytest.mark.parametrize("profile", load_profiles().values(), ids=lambda each: each.name)
def test_a_profiles_parameters_follow_from_its_shape(profile: ModelProfile) -> None:
    embeddings = profile.vocabulary * profile.hidden_size * (1 if profile.tied_embeddings else 2)
    # What is left are norms and biases: a few numbers per layer and hidden unit.
    rest = profile.parameters - profile.linear_parameters - embeddings
    assert 0 < rest < 15 * profile.layers * profile.hidden_size


@pytest.mark.parametrize("profile", load_profiles().values(), ids=lambda each: each.name)
def test_a_profile_names_a_repository(profile: ModelProfile) -> None:
    assert profile.hub_id.count("/") == 1
    assert profile.name == profile.name.lower()
    assert profile.heads % profile.key_value_heads == 0
    assert (profile.group_size is None) == (profile.bits == 16)


def test_the_briefs_models_are_there_and_said_to_be_unseen() -> None:
    llama, snoozy = (
        load_profiles()[name] for name in ("llama-13b-gptq", "gpt4all-13b-snoozy-gptq")
    )
    assert llama.hub_id == "camelids/llama-13b-int4-gptq-groupsize128-safetensors"
    assert snoozy.hub_id == "TheBloke/GPT4All-13B-snoozy-GPTQ"
    for profile in (llama, snoozy):
        assert "not seen" in profile.note
        # Half a byte for each of 12.7 billion, a scale and a zero point for 128 of them.
        assert 7.1e9 < profile.weight_bytes() < 7.3e9
