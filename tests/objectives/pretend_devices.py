"""Devices that are none: tensors that say they are on a GPU, refuse to meet others, and compute.

PyTorch's fake tensors do so too, but hold no numbers. These hold theirs in main memory, so that a
model on several pretended GPUs has a result to be compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from objectives.models.base import BaseModel
from objectives.models.machine.placement import dispatch

CPU = torch.device("cpu")

# What takes tensors of several devices, as on real ones: copies, and indices in main memory.
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
_TAKE_INDICES = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of different devices."""


class Pretended(Tensor):
    """A tensor that says it is on a device; `held` are its numbers, in main memory."""

    held: Tensor
    place: torch.device

    @staticmethod
    def __new__(  # type: ignore[misc] # see below
        cls, held: Tensor, place: torch.device | None = None, requires_grad: bool = False
    ) -> Tensor:
        """Return a tensor that pretends to be at `place`.

        Without it, it is the parameter that accelerate makes as it makes `Parameter(tensor)`.
        """
        if place is None:
            return torch.nn.Parameter(held, requires_grad)
        made: Pretended = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
        )
        made.held, made.place = held, place
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.place}: {self.held!r}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute in main memory what is on one device."""
        kwargs = dict(kwargs or {})
        place = _place_of_all(function, args, kwargs)
        result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
        pretended = tree_map(
            lambda each: Pretended(each, place) if isinstance(each, Tensor) else each, result
        )
        # Torch does not type this, nor what is called so below.
        return return_and_correct_aliasing(  # type: ignore[no-untyped-call]
            function, args, kwargs, pretended
        )


def _place_of_all(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.device:
    """Return the device of an operation's tensors; a number in main memory goes anywhere."""
    if function in _COPIES:
        return torch.device(args[0].device)
    if function in _TAKE_INDICES and all(
        each.device == CPU for each in tree_leaves(args[1]) if isinstance(each, Tensor)
    ):
        args = [args[0], *args[2:]]
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    devices = {each.device for each in tensors if each.dim() or each.device != CPU}
    if len(devices) > 1:
        raise MixedDevicesError(f"{function} was given tensors on {sorted(map(str, devices))}")
    return devices.pop()


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


class _Move(torch.autograd.Function):
    """A copy on another device, whose gradient is copied back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.device = tensor.device
        copy = _held(tensor).clone()
        return copy if device == CPU else Pretended(copy, device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        copy = _held(gradient).clone()
        return (copy if ctx.device == CPU else Pretended(copy, ctx.device)), None


class PretendDevices(TorchFunctionMode):
    """During it tensors can be made on, and moved to, GPUs that are not there."""

    def __enter__(self) -> PretendDevices:
        """Let modules get new parameters when they are moved, as such tensors need."""
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """Undo it."""
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        torch.__future__.set_overwrite_module_params_on_conversion(False)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Put tensors where they are asked for."""
        kwargs = dict(kwargs or {})
        if function is Tensor.to:
            return _to(*args, **kwargs)
        if function is Tensor.cpu:
            return _to(args[0], CPU)
        if function is torch.autograd.backward:
            outputs, gradients = args[0], kwargs["grad_tensors"]
            return self._differentiate(tuple(outputs), (gradients,))
        if function in (Tensor.tolist, Tensor.data_ptr):
            return function(*map(_held, args), **kwargs)
        if (device := kwargs.get("device")) is not None and torch.device(device) != CPU:
            made = function(*args, **(kwargs | {"device": CPU}))
            return Pretended(_held(made), torch.device(device))
        return function(*args, **kwargs)

    def _differentiate(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        # As torch.autograd.backward, which would come here again; a function's own backward needs
        # devices as well.
        with self:
            torch.autograd.graph._engine_run_backward(
                outputs,
                gradients,
                False,
                False,
                (),
                allow_unreachable=True,
                accumulate_grad=True,
            )


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    device, dtype, _, _ = torch._C._nn._parse_to(
        *(each for each in args if not isinstance(each, Tensor)),
        **{name: each for name, each in kwargs.items() if name in ("device", "dtype")},
    )
    if dtype is not None and dtype != tensor.dtype:
        tensor = torch.ops.aten._to_copy.default(tensor, dtype=dtype)
    if device is None or device == tensor.device:
        return tensor
    if device.type == "meta":
        return torch.empty_like(_held(tensor), device=device)
    moved: Tensor = _Move.apply(tensor, device)  # type: ignore[no-untyped-call]
    return moved


def spread(base: BaseModel, device_map: Mapping[str, str | int]) -> BaseModel:
    """Return a copy of a base model with its parts on the devices of a map."""
    return replace(base, model=dispatch(copy.deepcopy(base.model), device_map))
