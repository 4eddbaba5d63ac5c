"""Modules that cannot be trained through are refused; those that can are not, in any precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from objectives.models.base import BaseModel, ModelError
from objectives.models.gptq.backward_check import require_exact_backward
from objectives.models.gptq.four_bit import quantise_linears, random_four_bit

PLACES = ("model.layers.1.self_attn.v_proj", "model.layers.0.mlp.down_proj")


class Own(nn.Module):
    """A module that computes with the weights of a dense one."""

    weight: Tensor

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.register_buffer("weight", dense.weight.detach())  # (out, in)


class Right(Own):
    """Has a backward of its own, which is right."""

    def forward(self, inputs: Tensor) -> Tensor:
        return _with_backward(inputs, self.weight, self.weight)


class Detached(Own):
    """Computes as it should, outside of autograd's graph."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.detach() @ self.weight.T


class Unused(Own):
    """Has a graph, but one in which its inputs are not."""

    def forward(self, inputs: Tensor) -> Tensor:
        leaf = torch.zeros(self.out_features, requires_grad=True)
        return inputs.detach() @ self.weight.T + leaf


class WithoutBackward(Own):
    """Is made of a kernel that autograd finds no derivative of."""

    def forward(self, inputs: Tensor) -> Tensor:
        return _with_backward(inputs, self.weight, None)


class ScaledOtherwise(Own):
    """Passes back the gradient of weights whose scales lie along the other side."""

    def forward(self, inputs: Tensor) -> Tensor:
        along_inputs = torch.linspace(0.8, 1.2, self.in_features)
        along_outputs = torch.linspace(0.8, 1.2, self.out_features)[:, None]
        return _with_backward(inputs, self.weight * along_inputs, self.weight * along_outputs)


class WrongOrder(Own):
    """Passes back the gradient of the inputs in another order, as one that overlooks act-order."""

    def forward(self, inputs: Tensor) -> Tensor:
        return _with_backward(inputs, self.weight, self.weight.roll(1, dims=1))


class PartlyDetached(Own):
    """Loses one of a few inputs' gradients."""

    def forward(self, inputs: Tensor) -> Tensor:
        kept = torch.cat([inputs[..., :-1], inputs[..., -1:].detach()], dim=-1)
        return kept @ self.weight.T


class LaidOutAnew(Own):
    """Has a backward until it is called without gradients, as gptqmodel's kernel for a CPU."""

    asked = False

    def forward(self, inputs: Tensor) -> Tensor:
        self.asked = self.asked or not inputs.requires_grad
        return (inputs.detach() if self.asked else inputs) @ self.weight.T


class Squashed(Own):
    """Is not linear, with a backward that is right."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(inputs @ self.weight.T)


class Rectified(Own):
    """Is not linear, although a doubled input gives a doubled output."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(inputs @ self.weight.T)


class Endless(Own):
    """Gives outputs that are not finite."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T / 0


class OneLayer(nn.Module):
    """All that is asked of a model: its modules, and in what type it computes."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])
        self.dtype = dtype


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, backward: Tensor | None) -> Tensor:
        ctx.matrix = backward
        return inputs @ weight.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        if ctx.matrix is None:
            raise NotImplementedError("derivative is not implemented")
        return gradients[0] @ ctx.matrix, None, None


def _with_backward(inputs: Tensor, weight: Tensor, backward: Tensor | None) -> Tensor:
    product: Tensor = _Multiply.apply(inputs, weight, backward)  # type: ignore[no-untyped-call]
    return product


@pytest.fixture
def model(talking_base: BaseModel) -> PreTrainedModel:
    """Return a model that may be changed."""
    return copy.deepcopy(talking_base.model)


def replace_at(model: PreTrainedModel, place: str, kind: type[Own]) -> None:
    dense = model.get_submodule(place)
    assert isinstance(dense, nn.Linear)
    model.set_submodule(place, kind(dense))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dense_and_four_bit_modules_are_exact(model: PreTrainedModel, dtype: torch.dtype) -> None:
    model.to(dtype)
    require_exact_backward(model)
    quantise_linears(model, group_size=16)
    require_exact_backward(model)


def test_a_right_backward_of_its_own_is_exact(model: PreTrainedModel) -> None:
    for place in PLACES:
        replace_at(model, place, Right)
    require_exact_backward(model)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Detached, "passes back no gradient"),
        (Unused, "passes back no gradient"),
        (LaidOutAnew, "passes back no gradient"),
        (WithoutBackward, r"cannot be differentiated \(derivative is not implemented\)"),
        (ScaledOtherwise, "passes back a wrong gradient"),
        (WrongOrder, "passes back a wrong gradient"),
        (PartlyDetached, "passes back a wrong gradient"),
        (Squashed, "is not linear"),
        (Rectified, "is not linear"),
        (Endless, "gives outputs that are not finite"),
    ],
)
def test_what_cannot_be_trained_through_is_named(
    model: PreTrainedModel, place: str, kind: type[Own], reason: str
) -> None:
    replace_at(model, place, kind)
    with pytest.raises(ModelError, match=reason) as error:
        require_exact_backward(model)
    assert place in str(error.value)
    assert kind.__qualname__ in str(error.value)
    assert "loading.gptq = “built-in”" in str(error.value)


def test_one_that_can_be_trained_through_only_in_training_mode_is_refused(
    model: PreTrainedModel,
) -> None:
    class OnlyInTraining(Right):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs if self.training else inputs.detach())

    replace_at(model, PLACES[0], OnlyInTraining)
    with pytest.raises(ModelError, match=r"OnlyInTraining.* passes back no gradient"):
        require_exact_backward(model.eval())


def test_it_needs_no_gradients_switched_on_and_leaves_none(model: PreTrainedModel) -> None:
    with torch.no_grad():
        require_exact_backward(model)
    assert all(parameter.grad is None for parameter in model.parameters())


@given(
    seed=st.integers(0, 2**32),
    inner=st.sampled_from([8, 64, 512]),
    outer=st.sampled_from([8, 64, 256]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.sampled_from([None, 0.1, 10.0]),
)
def test_rounding_is_never_taken_for_a_wrong_gradient(
    seed: int, inner: int, outer: int, dtype: torch.dtype, bias: float | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.ModuleDict()
    for name in ("q_proj", "up_proj"):
        module = random_four_bit(inner, outer, group_size=8, generator=generator)
        if bias is not None:
            module.bias = torch.randn(outer, generator=generator) * bias
        layer[name] = module
    model = OneLayer(layer, dtype)
    require_exact_backward(model)
