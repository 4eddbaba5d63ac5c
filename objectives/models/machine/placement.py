"""Decides which device holds which part of a model, and puts it there, by accelerate.

A layer computes where it is. A layer that no GPU has room for is kept in main memory and is copied
to a GPU whenever it computes, in the forward and in the backward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain

import psutil
import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import compute_module_sizes, get_balanced_memory
from transformers import PreTrainedModel

from data.model_profiles import largest_profiles
from objectives.models.base import ModelError
from objectives.models.machine.devices import free_bytes, list_devices

SPLIT = "split"

# The share of a GPU's memory that weights may take when a model is split. The rest is for CUDA
# itself (about half a gigabyte), activations and the key/value cache of its layers, and on the
# first one for logits and the adapters: with gradients and moments four fp32 numbers per weight,
# 1 GB per slot for rank 16 at all modules of a 13B model.
_WEIGHTS_SHARE = 0.75

# What a parameter takes in 16 bits, and in 4 bits: half a byte, in groups of 128 a scale and a
# zero point, and embeddings and head in 16 bits, on the average of a 13B Llama.
_BYTES_IN_16_BIT = 2.0
_BYTES_IN_4_BIT = 0.56

_GIGA = 1e9


def plan_device_map(
    model_on_meta: PreTrainedModel, *, device: str, memory_limit_bytes: int | None
) -> dict[str, str | int]:
    """Return the device of every part of a model, by the part's name, as accelerate reads it.

    A GPU is a number, main memory is "cpu". On one device the whole model is the part "". Split,
    layers are whole, lie in order on all GPUs, about equally much on each, and what is too much
    for three quarters of every GPU's free memory stays in main memory. Without a GPU all does.

    Args:
        model_on_meta: The model as it will be loaded, quantised modules and types included; its
            tensors are only looked at.
        device: A torch device, or "split".
        memory_limit_bytes: The most of any GPU that may be used, or of main memory where nothing
            else computes; None for what is free.

    Raises:
        ModelError: If the weights do not fit. It says what they take, what is there, and what
            would fit.
    """
    gpus = [each.name for each in list_devices() if each.name != "cpu"]
    if device == SPLIT and not gpus:
        device = "cpu"
    if device != SPLIT:
        room = _room_on(device, gpus, memory_limit_bytes)
        needed = _weights_bytes(model_on_meta)
        if needed > room:
            raise ModelError(_say_too_large(device, needed, room, may_split=device != "cpu"))
        return {"": device}
    return _split(
        model_on_meta,
        [int(_WEIGHTS_SHARE * _least(free_bytes(gpu), memory_limit_bytes)) for gpu in gpus],
        psutil.virtual_memory().available,
    )


def require_main_memory(model_on_meta: PreTrainedModel) -> None:
    """Refuse a model that main memory has no room for, though it will be placed elsewhere.

    Raises:
        ModelError: It says what the weights take, what is there, and what would fit.
    """
    needed, room = _weights_bytes(model_on_meta), int(psutil.virtual_memory().available)
    if needed > room:
        raise ModelError(
            f"model: its weights are unpacked in main memory, where they take "
            f"{needed / _GIGA:.1f} GB, and there is room for {room / _GIGA:.1f} GB; end what else "
            f"uses it, or choose a smaller model: {_say_fitting(room)}"
        )


def dispatch(model: PreTrainedModel, device_map: Mapping[str, str | int]) -> PreTrainedModel:
    """Put a model's parts where `plan_device_map` says, and return it; it is changed.

    On several devices accelerate's hooks move what passes between them; inputs are given to, and
    logits come back to, where the embeddings are. A model that was loaded straight to the places
    of such a map is left as it is.
    """
    if getattr(model, "hf_device_map", None) is not None:
        return model
    if len(device_map) == 1:
        (device,) = device_map.values()
        return model.to(device)
    devices = {name: _name(device) for name, device in device_map.items()}
    main = next((each for each in devices.values() if each not in ("cpu", "disk")), "cpu")
    before = (log := logging.getLogger("accelerate.big_modeling")).level
    log.setLevel(logging.ERROR)  # it warns of weights in main memory, which were asked for
    try:
        # Quantised weights are buffers.
        dispatched: PreTrainedModel = dispatch_model(
            model,
            devices,
            main_device=main,
            offload_buffers=True,
            skip_keys=list(model._skip_keys_device_placement or ()),
        )
    finally:
        log.setLevel(before)
    return dispatched


def devices_of(model: PreTrainedModel) -> tuple[torch.device, ...]:
    """Return the devices that a model computes on, that of its inputs first.

    Main memory in which weights only wait is none of them.
    """
    embeddings = model.get_input_embeddings().parameters()
    tensors = chain(embeddings, model.parameters(), model.buffers())
    return tuple(dict.fromkeys(each.device for each in tensors if each.device.type != "meta"))


def is_offloaded(model: PreTrainedModel) -> bool:
    """Return whether some weights wait elsewhere and are copied to a device when they compute."""
    return any(each.is_meta for each in chain(model.parameters(), model.buffers()))


def _split(model: PreTrainedModel, rooms: list[int], main_memory: int) -> dict[str, str | int]:
    whole = list(model._no_split_modules or ())
    room_of: dict[str | int, int] = {**dict(enumerate(rooms)), "cpu": main_memory}
    balanced = get_balanced_memory(model, dict(room_of), no_split_module_classes=whole)
    # Equal parts may not fit unequal GPUs, which are then filled one after the other.
    for most in (balanced, room_of):
        placed = infer_auto_device_map(
            model, dict(most), no_split_module_classes=whole, offload_buffers=True
        )
        if not {"cpu", "disk"} & set(placed.values()):
            break
    embeddings = next(
        name for name, part in model.named_modules() if part is model.get_input_embeddings()
    )
    if _place_of(embeddings, placed) in ("cpu", "disk"):
        raise ModelError(
            f"device: {SPLIT!r} is not allowed; a GPU must have room for the embeddings and two "
            f"layers, and the largest may hold {max(rooms) / _GIGA:.1f} GB of weights; raise "
            "memory_limit, or choose 'cpu'"
        )
    if "disk" in placed.values():
        room = sum(rooms) + main_memory
        raise ModelError(_say_too_large(SPLIT, _weights_bytes(model), room, may_split=False))
    return dict(placed)


def _place_of(module: str, placed: Mapping[str, str | int]) -> str | int:
    """Return where a module is placed, which a map says of it or of a module around it."""
    while module not in placed:
        module = module.rpartition(".")[0]
    return placed[module]


def _name(device: str | int) -> str:
    return f"cuda:{device}" if isinstance(device, int) else device


def _weights_bytes(model: PreTrainedModel) -> int:
    return int(compute_module_sizes(model)[""])


def _room_on(device: str, gpus: Sequence[str], limit: int | None) -> int:
    if device == "cpu":
        return _least(psutil.virtual_memory().available, limit)
    name = "cuda:0" if device == "cuda" else device
    if name not in gpus:
        there = ", ".join(gpus) or "no GPU"
        raise ModelError(f"device: {device!r} is not there; torch can use cpu and {there}")
    return _least(free_bytes(name), limit)


def _least(free: int, limit: int | None) -> int:
    return free if limit is None else min(free, limit)


def _say_too_large(device: str, needed: int, room: int, *, may_split: bool) -> str:
    split = f"device = {SPLIT!r}, " if may_split else ""
    parts = " in whole layers" if device == SPLIT else ""
    return (
        f"device: {device!r} is not allowed; the model's weights take {needed / _GIGA:.1f} GB, "
        f"and there is room for {room / _GIGA:.1f} GB{parts}; choose {split}a higher memory_limit "
        f"if one is set, or a smaller model: {_say_fitting(room)}"
    )


def _say_fitting(room: int) -> str:
    """Return how large a model may be, and the largest known by name, as they are kept."""
    names = [each.name for each in largest_profiles(lambda each: each.weight_bytes() <= room)]
    return (
        f"{_say_billions(room, _BYTES_IN_16_BIT)} parameters fit in 16 bits, "
        f"{_say_billions(room, _BYTES_IN_4_BIT)} in 4 bits (GPTQ)"
        + (f", for example {', '.join(names)}" if names else "")
    )


def _say_billions(room: int, bytes_each: float) -> str:
    return f"{room / bytes_each / 1e9:.1f} billion"
