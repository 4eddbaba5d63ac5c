"""4-bit linear modules are read as GPTQ lays them out and train like their dense twins."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.recipes import Recipe, TargetModules
from objectives.bank import Bank
from objectives.bank.adapters import Layout
from objectives.bank.passes import SlotStep, differentiate, lay_out_pass
from objectives.bank.slot_weights import SlotWeights
from objectives.models.base import BaseModel, ModelError
from objectives.models.gptq.four_bit import (
    FourBitLinear,
    quantise_linears,
    quantise_round_to_nearest,
    random_four_bit,
)
from objectives.models.linear_modules import find_linear_modules
from tests.objectives.models.gptq.dense_twins import dense_model, dense_twin

SHUFFLED = (1, 0, 1, 0, 0, 1, 0, 1)


def make_example(
    groups: Sequence[int] | None = None, *, zero_points_less_one: bool = True
) -> FourBitLinear:
    """Return 8 inputs in 2 groups and 8 outputs, of which the last six are all zero.

    The digits of a hexadecimal number are its codes, the first input's or output's on the right.
    """
    packed = {
        "qweight": torch.tensor([[0x76543210, 0xFEDCBA98 - 2**32, 0, 0, 0, 0, 0, 0]]),
        "qzeros": torch.tensor([[0x92], [0xF4]]),
        "scales": torch.tensor([[0.5, 0.25, 0, 0, 0, 0, 0, 0], [2.0, 1.0, 0, 0, 0, 0, 0, 0]]),
    }
    if groups is not None:
        packed["g_idx"] = torch.tensor(groups)
    module = FourBitLinear(8, 8, group_size=4, zero_points_less_one=zero_points_less_one)
    module.load_state_dict(packed, strict=False)
    return module


def read_plainly(module: FourBitLinear) -> list[list[float]]:
    """Return the weights (in, out), each computed from the layout's description by itself."""
    codes, zeros, scales, groups = (
        tensor.tolist() for tensor in (module.qweight, module.qzeros, module.scales, module.g_idx)
    )
    less = int(module.zero_points_less_one)
    return [
        [
            scales[group][output]
            * (
                (codes[number // 8][output] >> 4 * (number % 8)) % 16
                - ((zeros[group][output // 8] >> 4 * (output % 8)) + less) % 16
            )
            for output in range(module.out_features)
        ]
        for number, group in enumerate(groups)
    ]


def input_gradient(module: nn.Module, inputs: Tensor) -> Tensor:
    own = inputs.clone().requires_grad_()
    (module(own) ** 2).sum().backward()
    assert own.grad is not None
    return own.grad


def test_an_example_computed_by_hand() -> None:
    weight = make_example().dequantise(torch.float32)
    # Output 0 has codes 0 1 2 3 | 4 5 6 7, zero points 2 + 1 | 4 + 1, scales 0.5 | 2:
    # (0 - 3) * 0.5 = -1.5 and so on | (4 - 5) * 2 = -2 and so on.
    assert weight[:, 0].tolist() == [-1.5, -1.0, -0.5, 0.0, -2.0, 0.0, 2.0, 4.0]
    # Output 1 has codes 8 9 10 11 | 12 13 14 15, zero points 9 + 1 | 15 + 1, which is 0 in four
    # bits, scales 0.25 | 1: (8 - 10) * 0.25 = -0.5 and so on | (12 - 0) * 1 = 12 and so on.
    assert weight[:, 1].tolist() == [-0.5, -0.25, 0.0, 0.25, 12.0, 13.0, 14.0, 15.0]
    assert not weight[:, 2:].any()


def test_an_example_with_zero_points_as_they_are_computed_by_hand() -> None:
    weight = make_example(zero_points_less_one=False).dequantise(torch.float32)
    # The codes as above; zero points 2 | 4 of output 0, 9 | 15 of output 1.
    assert weight[:, 0].tolist() == [-1.0, -0.5, 0.0, 0.5, 0.0, 2.0, 4.0, 6.0]
    assert weight[:, 1].tolist() == [-0.25, 0.0, 0.25, 0.5, -3.0, -2.0, -1.0, 0.0]


def test_an_example_in_another_order_computed_by_hand() -> None:
    weight = make_example(SHUFFLED).dequantise(torch.float32)
    # Output 0: codes 0, 2, 5, 7 belong to group 1, as (0 - 5) * 2 = -10; codes 1, 3, 4, 6 to
    # group 0, as (1 - 3) * 0.5 = -1.
    assert weight[:, 0].tolist() == [-10.0, -1.0, -6.0, 0.0, 0.5, 0.0, 1.5, 4.0]


def test_the_order_is_looked_at_again_after_loading() -> None:
    module = make_example()
    module.dequantise(torch.float32)
    module.load_state_dict(make_example(SHUFFLED).state_dict())
    expected = make_example(SHUFFLED).dequantise(torch.float32)
    assert torch.equal(module.dequantise(torch.float32), expected)


@given(
    seed=st.integers(0, 2**32),
    # 10 and 16 leave a smaller last group, 24 and -1 make a single one.
    group_size=st.sampled_from([4, 8, 10, 16, 24, -1]),
    zero_points_less_one=st.booleans(),
    shuffled=st.booleans(),
)
def test_any_codes_are_read_as_the_layout_says(
    seed: int, group_size: int, zero_points_less_one: bool, shuffled: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    module = FourBitLinear(
        24, 16, group_size=group_size, zero_points_less_one=zero_points_less_one
    )
    numbers = torch.randint(256, (*module.qweight.shape, 4), generator=generator)
    module.qweight = numbers.to(torch.uint8).view(torch.int32).squeeze(-1)
    numbers = torch.randint(256, (*module.qzeros.shape, 4), generator=generator)
    module.qzeros = numbers.to(torch.uint8).view(torch.int32).squeeze(-1)
    module.scales = torch.rand(module.scales.shape, generator=generator).half()
    if shuffled:
        module.g_idx = module.g_idx[torch.randperm(24, generator=generator)]
    weight = torch.tensor(read_plainly(module))
    assert torch.equal(module.dequantise(torch.float32), weight)
    inputs = torch.randn(2, 3, 24, generator=generator, dtype=torch.float64)
    dense = nn.Linear(24, 16, bias=False, dtype=torch.float64)
    dense.weight.data = weight.T.double()
    torch.testing.assert_close(module(inputs), dense(inputs))
    torch.testing.assert_close(input_gradient(module, inputs), input_gradient(dense, inputs))


@given(
    seed=st.integers(0, 2**32),
    spread=st.floats(1e-3, 100),
    # In standard deviations: a group may be on both sides of zero or on one.
    shift=st.floats(-8, 8),
    group_size=st.sampled_from([1, 8, 16]),
)
def test_rounding_to_nearest_is_at_most_half_a_step_off(
    seed: int, spread: float, shift: float, group_size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = spread * (torch.randn(8, 16, generator=generator) + shift)
    module = quantise_round_to_nearest(weight, group_size=group_size)
    steps = module.scales.float().repeat_interleave(group_size, dim=0)
    error = (module.dequantise(torch.float32) - weight.T).abs()
    assert (error <= steps * (0.5 + 1e-5)).all()
    # Sixteen codes span the group and zero; only a group on the positive side gets fewer.
    groups = weight.T.reshape(-1, group_size, 8)
    width = groups.amax(1).clamp(min=0) - groups.amin(1).clamp(max=0)
    assert (module.scales <= width / 14 * 1.002 + 2.0**-14).all()


def test_zeros_stay_zeros() -> None:
    module = quantise_round_to_nearest(torch.zeros(8, 8), group_size=8)
    assert not module.dequantise(torch.float32).any()


def test_the_stored_zero_point_is_the_real_one_minus_one() -> None:
    # From -8 to 7 in steps of 1: code 8 means zero, and 7 is stored for each of eight outputs.
    weight = torch.arange(-8.0, 8.0).expand(8, 16)
    module = quantise_round_to_nearest(weight, group_size=16)
    assert module.qzeros.tolist() == [[0x77777777]]
    # From 0 to 15: a zero point of 0 is not read alike everywhere; so 1 is taken, stored as 0.
    module = quantise_round_to_nearest(weight + 8, group_size=16)
    assert module.qzeros.tolist() == [[0]]
    assert not module.dequantise(torch.float32)[0].any()


@pytest.mark.parametrize("groups", [None, SHUFFLED])
def test_outputs_and_input_gradients_are_the_dense_modules(groups: Sequence[int] | None) -> None:
    module = make_example(groups)
    module.bias = torch.linspace(-1, 1, 8)
    dense = dense_twin(module).double()
    inputs = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(module(inputs), dense(inputs))
    torch.testing.assert_close(input_gradient(module, inputs), input_gradient(dense, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_keep_their_type(dtype: torch.dtype) -> None:
    module = make_example()
    inputs = torch.ones(2, 8, dtype=dtype)
    assert module(inputs).dtype == input_gradient(module, inputs).dtype == dtype
    # The columns' sums, exact in any of these types.
    assert module(inputs)[0, :2].tolist() == [1.0, 53.5]


def test_it_works_inside_checkpoint_and_inference_mode() -> None:
    module = make_example()
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    own = inputs.clone().requires_grad_()
    output: Tensor = checkpoint(module, own, use_reentrant=False)
    torch.autograd.backward((output**2).sum())
    assert own.grad is not None
    assert torch.equal(own.grad, input_gradient(module, inputs))
    with torch.inference_mode():
        assert torch.equal(module(inputs), output)


def test_backward_keeps_no_dense_weight() -> None:
    module = random_four_bit(64, 64, group_size=32, generator=torch.Generator())
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.ones(2, 64, requires_grad=True))
    assert kept == []


def test_random_weights_are_sensible_and_repeat() -> None:
    modules = [
        random_four_bit(
            256, 128, group_size=64, generator=torch.Generator().manual_seed(seed)
        ).dequantise(torch.float32)
        for seed in (3, 3, 4)
    ]
    assert torch.equal(modules[0], modules[1])
    assert not torch.equal(modules[0], modules[2])
    assert modules[0].mean().item() == pytest.approx(0, abs=0.02 / 16)
    assert modules[0].var().item() == pytest.approx(1 / 256, rel=0.02)


@pytest.mark.parametrize(
    ("in_features", "out_features", "group_size", "message"),
    [
        (12, 8, 4, "in_features: 12 is not allowed; it must be a multiple of 8"),
        (8, 4, 8, "out_features: 4 is not allowed; it must be a multiple of 8"),
        (0, 8, 8, "in_features: 0 is not allowed; it must be a multiple of 8"),
        (8, 8, 0, "group_size: 0 is not allowed; it must be at least 1, or -1 for one"),
        (8, 8, -2, "group_size: -2 is not allowed; it must be at least 1, or -1 for one"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    in_features: int, out_features: int, group_size: int, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        FourBitLinear(in_features, out_features, group_size=group_size)


def test_rounding_leaves_no_smaller_group() -> None:
    with pytest.raises(ModelError, match="group_size: 16 is not allowed; it must divide 24"):
        quantise_round_to_nearest(torch.ones(8, 24), group_size=16)


@pytest.mark.parametrize("group_size", [8, -1])
def test_groups_in_another_order_are_as_near(group_size: int) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(8, 24, generator=generator)
    order = torch.randperm(24, generator=generator)
    module = quantise_round_to_nearest(weight, group_size=group_size, order=order)
    assert module.g_idx[order].tolist() == sorted(module.g_idx.tolist())
    # Quantised in that order they are neighbours, and the weights are the same.
    moved = quantise_round_to_nearest(weight[:, order], group_size=group_size)
    expected = moved.dequantise(torch.float32)
    assert torch.equal(module.dequantise(torch.float32)[order], expected)


def make_twins(base: BaseModel) -> tuple[BaseModel, BaseModel]:
    """Return a base model quantised, and a dense one with the same weights."""
    four_bit = copy.deepcopy(base.model)
    quantise_linears(four_bit, group_size=16)
    dense = dense_model(four_bit)
    return dataclasses.replace(base, model=four_bit), dataclasses.replace(base, model=dense)


def train(base: BaseModel, *, gradient_checkpointing: bool = False) -> list[Tensor]:
    """Return every matrix of two unlike adapters after some steps side by side."""
    bank = Bank(base, slots=2, max_rank=4, gradient_checkpointing=gradient_checkpointing)
    recipes = (
        Recipe(epochs=9, rank=4, alpha=8, cutoff=48, warmup_steps=8, learning_rate=3e-3),
        Recipe(
            epochs=9,
            rank=2,
            alpha=8,
            cutoff=48,
            warmup_steps=8,
            learning_rate=3e-3,
            target_modules="attention",
        ),
    )
    texts = [" ".join(f"w{(7 * text + word) % 24}" for word in range(9)) for text in range(8)]
    for slot, recipe in enumerate(recipes):
        bank.admit(slot, recipe, lambda _epoch: texts, seed=slot)
    for _ in range(12):
        bank.step()
    return [
        matrix.clone()
        for slot in range(2)
        for pair in bank.matrices(slot).values()
        for matrix in pair
    ]


def test_only_the_head_stays_dense(talking_base: BaseModel) -> None:
    model = make_twins(talking_base)[0].model
    dense = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert dense == ["lm_head"]
    assert sum(isinstance(module, FourBitLinear) for module in model.modules()) == 2 * 7


def test_adapters_learn_the_same_as_on_the_dense_model(talking_base: BaseModel) -> None:
    four_bit, dense = make_twins(talking_base)
    expected = train(dense)
    assert len(expected) == 2 * (2 * 7 + 2 * 4)
    assert all(matrix.any() for matrix in expected), "without movement equality shows nothing"
    for trained in (train(four_bit), train(four_bit, gradient_checkpointing=True)):
        for own, other in zip(trained, expected, strict=True):
            assert (own - other).abs().max() < 1e-5


def gradients_of(base: BaseModel) -> dict[str, Tensor]:
    """Return the gradient of every matrix of three unlike adapters in one pass."""
    layout = Layout(find_linear_modules(base.model))
    targets: tuple[TargetModules, ...] = ("all", "all", "query+value")
    weights = SlotWeights(layout, slots=3, max_rank=4, device=base.device)
    generator = torch.Generator().manual_seed(11)
    for slot, (rank, target) in enumerate(zip((4, 1, 3), targets, strict=True)):
        weights.cover(slot, rank=rank, positions=layout.positions(target), scale=0.5 + slot)
    for slot in range(3):
        own = weights.region(weights.weights, slot)
        # No B is zero, for then no A had a gradient.
        own.copy_(0.3 * torch.randn(own.shape, generator=generator))
    steps = {
        slot: SlotStep(
            batch=tuple(
                tuple(torch.randint(4, 30, (length,), generator=generator).tolist())
                for length in range(5 + slot, 9)
            ),
            dropout=0,
            seed=0,
            number=1,
        )
        for slot in range(3)
    }
    training_pass = lay_out_pass(base, weights, steps)
    differentiate(base, layout, training_pass, nullcontext())
    return {
        f"{slot} {layout.modules[position].name} {side}": gradient.clone()
        for slot, target in enumerate(targets)
        for position, pair in zip(
            layout.positions(target),
            layout.split(training_pass.gradients[slot], layout.positions(target)),
            strict=True,
        )
        for side, gradient in zip("AB", pair, strict=True)
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # A few times what a number's last digit is worth, for passes have many roundings.
    [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)],
)
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_adapter_parameter_has_the_gradient_of_the_dense_model(
    talking_base: BaseModel, dtype: torch.dtype, tolerance: float, shuffled: bool
) -> None:
    four_bit, dense = make_twins(talking_base)
    for name, module in four_bit.model.named_modules():
        if isinstance(module, FourBitLinear):
            if shuffled:
                generator = torch.Generator().manual_seed(len(name))
                module.g_idx = module.g_idx[
                    torch.randperm(module.in_features, generator=generator)
                ]
            dense.model.get_submodule(name).weight.data = module.dequantise(dtype).T.contiguous()
    for model in (four_bit.model, dense.model):
        for parameter in model.parameters():  # and no scales, which are buffers
            parameter.data = parameter.data.to(dtype)
    expected, gradients = gradients_of(dense), gradients_of(four_bit)
    assert len(expected) == 2 * (2 * 7 + 2 * 7 + 2 * 2)
    for name, gradient in expected.items():
        assert gradient.any(dim=1).all(), f"{name} has no gradient"
        error = (gradients[name] - gradient).abs().max()
        assert error <= tolerance * gradient.abs().max(), name
