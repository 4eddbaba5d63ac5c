"""A linear module with 4-bit weights in GPTQ's layout, computed in plain torch on any device.

Reading a checkpoint is not done here: the buffers have its tensors' names and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from objectives.models.base import ModelError

_BITS = 4
_HIGHEST_CODE = 2**_BITS - 1
_CODES_PER_INT = 32 // _BITS

# Scales are stored as halves. Below the smallest normal one they lose digits; where one is rounded
# down, which takes at most 2^-11 of it, the codes would no longer reach the outermost weights.
_SMALLEST_SCALE = 2.0**-14
_ROOM_FOR_ROUNDING = 1 + 2.0**-10


class FourBitLinear(nn.Module):
    """A frozen linear module whose weights are (code - zero point) * scale, codes from 0 to 15.

    The layout is auto-gptq's (Frantar et al., 2210.17323): eight codes lie in an int32, the first
    in its lowest bits. Zero points are stored minus one (`checkpoint_format` "gptq"), where 15
    means 0, or as they are ("gptq_v2"). Choose a model's floating point type before, for casting
    it casts the scales, too.

    Buffers:
        qweight: (in / 8, out) int32, eight inputs' codes in each.
        qzeros: (groups, out / 8) int32, eight outputs' zero points in each.
        scales: (groups, out) float16.
        g_idx: (in) int32, the group of each input. Files without it mean input // group size,
            which a new module has; under act-order ("desc_act") it is those in another order.
        bias: (out), or None.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        group_size: int,
        bias: bool = False,
        zero_points_less_one: bool = True,
        device: torch.device | None = None,
    ) -> None:
        """Make a module whose weights are all zero, to be filled.

        Args:
            in_features: A multiple of 8.
            out_features: A multiple of 8.
            group_size: How many inputs share a scale and a zero point, -1 for all; the last group
                may have fewer.
            bias: Whether something is added to the product.
            zero_points_less_one: Whether the zero points are stored minus one.
            device: Where the buffers are.

        Raises:
            ModelError: If the sizes do not fit the layout.
        """
        super().__init__()
        for field, features in (("in_features", in_features), ("out_features", out_features)):
            _require_multiple_of_eight(field, features)
        if group_size < 1 and group_size != -1:
            raise ModelError(
                f"group_size: {group_size} is not allowed; it must be at least 1, or -1 for one "
                "group of all inputs"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = in_features if group_size == -1 else min(group_size, in_features)
        self.zero_points_less_one = zero_points_less_one
        groups = math.ceil(in_features / self.group_size)

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.register_buffer(
            "qweight", zeros(in_features // _CODES_PER_INT, out_features, dtype=torch.int32)
        )
        self.register_buffer(
            "qzeros", zeros(groups, out_features // _CODES_PER_INT, dtype=torch.int32)
        )
        self.register_buffer("scales", zeros(groups, out_features, dtype=torch.float16))
        self.register_buffer("g_idx", self.sequential_groups(device))
        self.register_buffer("bias", zeros(out_features, dtype=torch.float16) if bias else None)
        # The inputs by group; found out when first needed, because on a GPU that waits.
        self._order: Tensor | None = None
        self._knows_order = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (.., out) of inputs (.., in), computed in the inputs' floating point type."""
        product: Tensor = _Multiply.apply(inputs, self)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """Return the weights (in, out), the transpose of a dense linear module's.

        The products are computed in fp32 and rounded to `dtype` once.
        """
        weight = self.dequantise_by_group(dtype)
        order = self.order()
        return weight if order is None else torch.empty_like(weight).index_copy_(0, order, weight)

    def dequantise_by_group(self, dtype: torch.dtype) -> Tensor:
        """Return the weights (in, out) as `dequantise` does, but of inputs in `order`."""
        codes, zero_points = _unpack(self.qweight), _unpack(self.qzeros.T).T
        if self.zero_points_less_one:
            zero_points = (zero_points + 1).bitwise_and_(_HIGHEST_CODE)
        order = self.order()
        if order is not None:
            codes = codes.index_select(0, order)
        lacking = len(zero_points) * self.group_size - self.in_features
        if lacking:
            codes = nn.functional.pad(codes, (0, 0, 0, lacking))
        # (groups, inputs of each, out). Moving memory is all that this costs, so that integers
        # stay single bytes to the end.
        steps = codes.view(len(zero_points), self.group_size, self.out_features)
        steps = steps.sub_(zero_points[:, None])
        weight = torch.empty(steps.shape, dtype=dtype, device=steps.device)
        torch.mul(steps, self.scales.float()[:, None], out=weight)
        return weight.view(-1, self.out_features)[: self.in_features]

    def order(self) -> Tensor | None:
        """Return the inputs (in) such that those of a group are neighbours; None if they are."""
        if not self._knows_order:
            is_sequential = torch.equal(self.g_idx, self.sequential_groups(self.g_idx.device))
            self._order = None if is_sequential else self.g_idx.argsort(stable=True)
            self._knows_order = True
        return self._order

    def sequential_groups(self, device: torch.device | None = None) -> Tensor:
        """Return the group of each input (in) where a group's inputs are neighbours."""
        return torch.arange(self.in_features, dtype=torch.int32, device=device) // self.group_size

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._knows_order = False


class _Multiply(torch.autograd.Function):
    """A product with 4-bit weights that keeps neither inputs nor dense weights for backward.

    Where groups are out of order, inputs are moved rather than the far more weights.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, module: FourBitLinear) -> Tensor:
        ctx.module = module
        order = module.order()
        moved = inputs if order is None else inputs.index_select(-1, order)
        return moved @ module.dequantise_by_group(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        # Weights that wait in main memory are copied here again; the forward pass's are gone.
        with align_module_device(ctx.module):
            moved = gradient @ ctx.module.dequantise_by_group(gradient.dtype).T
        order = ctx.module.order()
        return moved if order is None else torch.empty_like(moved).index_copy_(
            -1, order, moved
        ), None


@torch.no_grad()
def quantise_round_to_nearest(
    weight: Tensor, *, group_size: int, bias: Tensor | None = None, order: Tensor | None = None
) -> FourBitLinear:
    """Return a 4-bit module whose weights are at most half a step from `weight`.

    Per group and output the codes span what lies between the least and the greatest weight and 0.
    No other weights make up for the rounding as they do in GPTQ.

    Args:
        weight: (out, in), as a dense linear module has it.
        group_size: How many inputs share a scale and a zero point, -1 for all.
        bias: (out).
        order: (in), the inputs in the order in which they are put into groups, as act-order does;
            by default their own.

    Raises:
        ModelError: If the sizes do not fit the layout, or the last group would be smaller.
    """
    out_features, in_features = weight.shape
    module = FourBitLinear(in_features, out_features, group_size=group_size, device=weight.device)
    if in_features % module.group_size:
        raise ModelError(
            f"group_size: {group_size} is not allowed; it must divide {in_features}, the inputs "
            "of a module, or be -1 for one group of all"
        )
    inputs = weight.T.float() if order is None else weight.T.float()[order]
    grouped = inputs.reshape(-1, module.group_size, out_features)
    low, high = grouped.amin(1).clamp(max=0), grouped.amax(1).clamp(min=0)
    # Not all kernels read a zero point of 0 that is stored minus one; so one code is below zero.
    steps = torch.maximum((high - low) / _HIGHEST_CODE, high / (_HIGHEST_CODE - 1))
    module.scales = (steps * _ROOM_FOR_ROUNDING).clamp(min=_SMALLEST_SCALE).half()
    scales = module.scales.float()
    zero_points = (-low / scales).round().clamp(min=1)
    codes = (grouped / scales[:, None]).round() + zero_points[:, None]
    codes = codes.clamp(0, _HIGHEST_CODE).flatten(0, 1)
    if order is not None:
        places = order.argsort()
        codes, module.g_idx = codes[places], module.g_idx[places]
    module.qweight = _pack(codes)
    module.qzeros = _pack(zero_points.T - 1).T.contiguous()
    module.bias = bias
    return module


def quantise_linears(
    model: nn.Module, *, group_size: int, skip: Sequence[str] = ("lm_head",)
) -> None:
    """Put 4-bit modules in the place of a model's dense linear modules, rounding to nearest.

    Args:
        model: Is changed.
        group_size: How many inputs share a scale and a zero point.
        skip: Modules that stay dense, by the last part of their names.

    Raises:
        ModelError: If a module's sizes do not fit the layout.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in skip:
            bias = None if module.bias is None else module.bias.detach()
            packed = quantise_round_to_nearest(module.weight, group_size=group_size, bias=bias)
            model.set_submodule(name, packed)


def random_four_bit(
    in_features: int, out_features: int, *, group_size: int, generator: torch.Generator
) -> FourBitLinear:
    """Return a module with random codes that was never dense, on the generator's device.

    Its weights have mean 0 and variance 1 / in_features, so that outputs are as large as inputs.

    Raises:
        ModelError: If the sizes do not fit the layout.
    """
    device = generator.device
    module = FourBitLinear(in_features, out_features, group_size=group_size, device=device)
    four_bytes = torch.randint(
        256, (*module.qweight.shape, 4), dtype=torch.uint8, generator=generator, device=device
    )
    module.qweight = four_bytes.view(torch.int32).squeeze(-1)
    # Zero points of 7 and 8 lie around 7.5, the mean of the codes. In steps, the variance is
    # (16^2 - 1) / 12 of the codes and 1/4 of the zero points.
    stored = torch.randint(6, 8, module.scales.shape, generator=generator, device=device)
    module.qzeros = _pack(stored.T).T.contiguous()
    module.scales.fill_(1 / math.sqrt((255 / 12 + 1 / 4) * in_features))
    return module


def _require_multiple_of_eight(field: str, value: int) -> None:
    if value < 1 or value % _CODES_PER_INT:
        raise ModelError(
            f"{field}: {value} is not allowed; it must be a multiple of {_CODES_PER_INT}"
        )


def _shifts(device: torch.device) -> Tensor:
    """Return how far each of eight codes is shifted, (8, 1)."""
    return torch.arange(0, 32, _BITS, dtype=torch.int32, device=device)[:, None]


def _pack(codes: Tensor) -> Tensor:
    """Return int32 (n, m), each of eight numbers from 0 to 15 of codes (8 n, m)."""
    eights = codes.to(torch.int32).reshape(-1, _CODES_PER_INT, codes.shape[1])
    return (eights << _shifts(codes.device)).sum(1, dtype=torch.int32)


def _unpack(packed: Tensor) -> Tensor:
    """Return the numbers from 0 to 15, int8 (8 n, m), that `_pack` was given."""
    shape = (len(packed), _CODES_PER_INT, packed.shape[1])
    codes = torch.empty(shape, dtype=torch.int8, device=packed.device)
    # Only the lowest byte of what was shifted is kept, and half of it is the number.
    torch.bitwise_right_shift(packed[:, None], _shifts(packed.device), out=codes)
    return codes.bitwise_and_(_HIGHEST_CODE).flatten(0, 1)
