"""Tries out whether a model's linear modules pass back the gradient of what they compute.

Some kernels for quantised weights have no backward, or a wrong one. Adapters beside such a module
still make the loss fall, so that only this shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from objectives.models.base import ModelError
from objectives.models.linear_modules import LinearModule, find_linear_modules
from objectives.models.machine.memory import is_out_of_memory

_ROWS = 8
_SEED = 20230312

# Inputs are quarters from -2 to 2: sums of two are exact in every floating point type.
_GREATEST_QUARTERS = 8

# How often a number on either side of the comparison is rounded to the inputs' type: outputs of
# two inputs, weights in the forward and in the backward pass, the gradient; and a product that is
# split into parts may round each of their sums.
_ROUNDINGS = 8

_REMEDY = (
    "for a GPTQ checkpoint say loading.gptq = “built-in” (in gptqmodel itself, the backend "
    "gptq_torch has one); otherwise take the model in full precision"
)


def require_exact_backward(model: PreTrainedModel) -> None:
    """Raise unless every kind of module beside which adapters sit can be trained through.

    Such a module computes f(x) = W x + b. It must be so: f(x + d) - f(x) = f(d) - f(0); and what
    it passes back for a gradient g must be W^T g: <W^T g, d> = <g, f(x + d) - f(x)>, for random x,
    d and g. Neither needs W itself, so that any layout of the weights can be tried. One module is
    tried of each class, shape and device, in the mode in which the model is: evaluation mode, when
    a bank uses it. It is asked first, as in a study: some kernels lay out their weights anew for
    a pass without gradients, and have no backward from then on.

    Raises:
        ModelError: If a module fails; names it, its class and the remedy.
    """
    tried = set()
    for linear in find_linear_modules(model):
        kind = _kind_of(linear)
        if kind not in tried:
            tried.add(kind)
            _require_exact(linear, model.dtype)


def _kind_of(linear: LinearModule) -> tuple[object, ...]:
    """Return what two modules share whose forward and backward are the same code."""
    tensors = [*linear.module.named_parameters(), *linear.module.named_buffers()]
    return (
        type(linear.module),
        linear.in_features,
        linear.out_features,
        tuple((name, tensor.dtype, tensor.device) for name, tensor in tensors),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """What a module made of four blocks of rows, x, x + d, d and 0; all in fp64 on the CPU.

    `inputs` and `passed_back` are (4 rows, in), `outputs` and `gradients` (4 rows, out).
    """

    inputs: Tensor
    outputs: Tensor
    gradients: Tensor
    passed_back: Tensor


def _require_exact(linear: LinearModule, dtype: torch.dtype) -> None:
    trial = _try_out(linear, dtype)
    _, _, steps, _ = trial.inputs.chunk(4)
    at, moved, of_step, of_zero = trial.outputs.chunk(4)
    tolerance = _tolerance(linear, dtype)
    # What rounding to a relative accuracy of 1 would make of the differences of outputs.
    size = float(trial.outputs.norm())
    if not math.isfinite(size):
        raise _refusal(linear, "gives outputs that are not finite")
    if float((moved - at - of_step + of_zero).norm()) > tolerance * size:
        raise _refusal(linear, "is not linear")
    # Each of random signs, a product with `gradients` is about as large as a row of outputs.
    through_outputs = trial.gradients @ (moved - at).T
    through_inputs = trial.passed_back @ steps.T
    wrong = float((through_inputs - through_outputs).norm())
    # Also when it is not a number.
    if not wrong <= tolerance * size * math.sqrt(len(trial.gradients)):
        share = wrong / max(float(through_outputs.norm()), 1e-300)
        raise _refusal(
            linear,
            f"passes back a wrong gradient (off by {share:.2%}, of which rounding explains "
            f"{tolerance:.2%})",
        )


def _try_out(linear: LinearModule, dtype: torch.dtype) -> _Trial:
    generator = torch.Generator().manual_seed(_SEED)

    def quarters() -> Tensor:
        shape = (_ROWS, linear.in_features)
        high = _GREATEST_QUARTERS + 1
        return torch.randint(1 - high, high, shape, generator=generator) / 4

    first, step = quarters(), quarters()
    rows = torch.cat([first, first + step, step, torch.zeros_like(step)])
    device = next((each.device for each in _tensors_of(linear.module)), torch.device("cpu"))
    if device.type == "meta":  # its weights are elsewhere until it is called
        device = torch.device("cpu")
    # One row of all tokens, as a bank's passes have.
    inputs = rows.to(device, dtype)[None].requires_grad_()
    signs = torch.randint(2, (len(rows), linear.out_features), generator=generator) * 2 - 1
    try:
        outputs, passed_back = _differentiate(linear.module, inputs, signs)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise _refusal(linear, f"cannot be differentiated ({reason})") from error
    if passed_back is None:
        raise _refusal(linear, "passes back no gradient")
    return _Trial(
        inputs=rows.double(),
        outputs=outputs[0].cpu().double(),
        gradients=signs.double(),
        passed_back=passed_back[0].cpu().double(),
    )


def _differentiate(
    module: nn.Module, inputs: Tensor, gradients: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return a module's outputs (1, rows, out), and what it passes back, None for nothing."""
    with torch.no_grad():
        module(inputs.detach())
    with torch.enable_grad():
        outputs = module(inputs)
    if not outputs.requires_grad:
        return outputs, None
    (passed_back,) = torch.autograd.grad(
        outputs, inputs, gradients.to(outputs)[None], allow_unused=True
    )
    return outputs.detach(), passed_back


def _tolerance(linear: LinearModule, dtype: torch.dtype) -> float:
    """Return how far apart, relative to the outputs, rounding alone may bring both sides.

    The type to round to is the coarsest in use: kernels may compute in that of their scales.
    Sums are in fp32 at the least, and their errors add up like a random walk.
    """
    types = {dtype, *(each.dtype for each in _tensors_of(linear.module))}
    rounding = max(torch.finfo(each).eps / 2 for each in types if each.is_floating_point)
    terms = max(linear.in_features, linear.out_features)
    return _ROUNDINGS * rounding + math.sqrt(terms) * torch.finfo(torch.float32).eps / 2


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _refusal(linear: LinearModule, why: str) -> ModelError:
    kind = type(linear.module)
    return ModelError(
        f"model: the module {linear.name} ({kind.__module__}.{kind.__qualname__}) is not allowed; "
        f"it {why}, and adapters beside it would be trained wrongly; it must be linear and pass "
        f"back its exact gradient; {_REMEDY}"
    )
