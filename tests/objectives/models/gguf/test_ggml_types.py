"""Weights become the bytes of GGML's types, and the values that those stand for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf import dequantize as gguf_dequantize
from gguf import quantize as gguf_quantize
from hypothesis import given
from hypothesis import strategies as st

from objectives.models.base import ModelError
from objectives.models.gguf.ggml_types import (
    GGML_TYPES,
    GgmlType,
    bits_per_weight,
    dequantise,
    quantise,
    quantise_by_ggml,
    through_type,
)

OLDER: tuple[GgmlType, ...] = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
HALVES: tuple[GgmlType, ...] = ("f16", "bf16")
K_QUANTS: tuple[GgmlType, ...] = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


def draw_weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(weight: torch.Tensor, ggml_type: GgmlType) -> float:
    return float((through_type(weight, ggml_type) - weight).norm() / weight.norm())


@pytest.mark.parametrize(
    ("ggml_type", "low", "high"),
    [("q4_0", -8, 7), ("q4_1", 0, 15), ("q5_0", -16, 15), ("q5_1", 0, 31), ("q8_0", -127, 127)],
)
def test_a_block_that_uses_every_code_is_held_exactly(
    ggml_type: GgmlType, low: int, high: int
) -> None:
    # With the outermost codes as weights the scale is 1, a power of two, and so is its half.
    weight = torch.linspace(low, high, 32).round()[None]
    assert torch.equal(through_type(weight, ggml_type), weight)
    assert torch.equal(through_type(weight / 2, ggml_type), weight / 2)


def test_a_weight_between_two_codes_goes_to_the_nearer() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :4] = torch.tensor([-8.0, 2.4, 2.6, -0.2])  # q4_0: the scale is -8 / -8 = 1
    assert through_type(weight, "q4_0")[0, :4].tolist() == [-8, 2, 3, 0]


@pytest.mark.parametrize("ggml_type", [*OLDER, *HALVES])
def test_bytes_and_values_are_those_of_gguf(ggml_type: GgmlType) -> None:
    weight = draw_weight(48, 96)
    its_type = GGMLQuantizationType[ggml_type.upper()]
    packed = gguf_quantize(weight.numpy(), its_type)
    assert np.array_equal(quantise(weight, ggml_type), packed.view(np.uint8))
    assert np.array_equal(through_type(weight, ggml_type), gguf_dequantize(packed, its_type))


@given(
    seed=st.integers(0, 2**32 - 1),
    ggml_type=st.sampled_from(OLDER),
    scale=st.sampled_from([1.0, 10.0, 100.0]),
)
def test_a_weight_moves_by_at_most_its_blocks_step_and_rows_are_apart(
    seed: int, ggml_type: GgmlType, scale: float
) -> None:
    weight = scale * draw_weight(6, 64, seed=seed)
    rows = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    values = through_type(weight, ggml_type)
    assert torch.equal(values[rows], through_type(weight[rows], ggml_type))
    # A step is at most the range of a block over the number of steps; rounding takes half of one,
    # and q4_0 and q5_0 have no code for the opposite of their largest weight.
    steps = {"q4_0": 8, "q4_1": 15, "q5_0": 16, "q5_1": 31, "q8_0": 127}[ggml_type]
    is_centred = ggml_type.endswith("_0")
    blocks = weight.view(-1, 32)
    width = blocks.abs().amax(1) if is_centred else blocks.amax(1) - blocks.amin(1)
    error = (values.view(-1, 32) - blocks).abs().amax(1)
    allowed = 1.0 if ggml_type in ("q4_0", "q5_0") else 0.5
    assert bool((error <= 1.01 * width * (allowed / steps + 2**-10)).all())


def test_bits_count_the_scales() -> None:
    # A block of q4_1 has 32 codes of 4 bits and two halves: 160 bits.
    assert [bits_per_weight(each) for each in OLDER] == [4.5, 160 / 32, 5.5, 6.0, 8.5]
    assert [bits_per_weight(each) for each in ("f32", *HALVES)] == [32, 16, 16]


def test_values_keep_the_weights_own_floating_point_type() -> None:
    weight = draw_weight(4, 32).bfloat16()
    values = through_type(weight, "q8_0")
    assert values.dtype == torch.bfloat16
    assert torch.equal(values, through_type(weight.float(), "q8_0").bfloat16())


@pytest.mark.parametrize(
    ("ggml_type", "columns", "said"),
    [
        ("q4_0", 48, "rows of 48 weights; they must be a multiple of 32; choose f16"),
        ("q4_k", 128, "rows of 128 weights; they must be a multiple of 256; choose a type of"),
    ],
)
def test_rows_that_are_no_whole_blocks_are_refused(
    ggml_type: GgmlType, columns: int, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        quantise(draw_weight(2, columns), ggml_type)


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("inf"), "infinite"), (float("nan"), "infinite"), (1e9, "at most 65504")],
)
def test_weights_that_a_type_cannot_hold_are_refused(value: float, said: str) -> None:
    weight = draw_weight(1, 32)
    weight[0, 3] = value
    with pytest.raises(ModelError, match=said):
        through_type(weight, "q4_0")


def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"gguf: the package is not installed.*\.\[gguf\]"):
        quantise(draw_weight(1, 32), "q4_0")


@pytest.mark.extras
@pytest.mark.parametrize("ggml_type", [*OLDER, *HALVES])
def test_bytes_are_those_of_llama_cpp(ggml_type: GgmlType) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp; pip install -e '.[gguf]'")
    weight = draw_weight(64, 256, seed=3)
    assert np.array_equal(quantise(weight, ggml_type), quantise_by_ggml(weight.numpy(), ggml_type))


@pytest.mark.extras
def test_k_quants_are_made_by_llama_cpp_and_read_by_gguf() -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp; pip install -e '.[gguf]'")
    weight = draw_weight(32, 512)
    errors = [relative_error(weight, ggml_type) for ggml_type in K_QUANTS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03
    # Where both take 4.5 bits, the newer type is nearer.
    assert bits_per_weight("q4_k") == bits_per_weight("q4_0")
    assert relative_error(weight, "q4_k") < relative_error(weight, "q4_0")
    assert dequantise(quantise(weight, "q6_k"), "q6_k").shape == (32, 512)


def test_every_type_has_its_name_in_gguf() -> None:
    assert {each.upper() for each in GGML_TYPES} <= {
        each.name.upper() for each in GGMLQuantizationType
    }
