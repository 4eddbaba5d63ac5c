"""Too little memory is refused with what is needed and what would fit."""

from __future__ import annotations

import pytest
import torch

from data.model_profiles import load_profiles
from objectives.models.base import ModelError
from objectives.models.machine import memory_limit
from objectives.models.machine.devices import Device
from objectives.models.machine.footprint import Demand, Storing, config_of, estimate, shape_of
from objectives.models.machine.memory_limit import (
    cap_memory,
    peak_gpu_bytes,
    profiles_within,
    require_room,
    room_on,
    say_gigabytes,
    too_little_memory,
)

DEMAND = Demand(rank=32, step_tokens=150, prompt_tokens=60, answer_tokens=48)
CPU = torch.device("cpu")


def test_what_fits_is_estimated() -> None:
    shape = shape_of(config_of(load_profiles()["llama-3.2-1b"]))
    storing = Storing(dtype=torch.bfloat16)
    least = estimate(shape, storing, DEMAND).least
    assert require_room(shape, storing, DEMAND, limit_bytes=least).least == least
    with pytest.raises(ModelError):
        require_room(shape, storing, DEMAND, limit_bytes=least - 1)


def test_too_little_for_a_large_model_names_what_is_needed_and_what_would_fit() -> None:
    shape = shape_of(config_of(load_profiles()["qwen3-8b"]))
    storing = Storing(dtype=torch.bfloat16)
    needed = estimate(shape, storing, DEMAND)
    with pytest.raises(ModelError) as refused:
        require_room(shape, storing, DEMAND, limit_bytes=12 * 10**9)
    message = str(refused.value)
    assert message.startswith("memory_limit: 12 GB is not allowed; it must be at least ")
    assert f"{needed.weights.total / 1e9:.0f} GB for the weights" in message
    assert "the same model in 4 bits" in message
    assert "a smaller model: " in message
    named = message.rpartition(": ")[2].split(", ")
    for name in named:
        profile = load_profiles()[name]
        assert profile.weight_bytes() < 12 * 10**9


def test_gradient_checkpointing_is_advised_only_where_it_suffices() -> None:
    shape = shape_of(config_of(load_profiles()["llama-3.2-1b"]))
    storing = Storing(dtype=torch.bfloat16)
    long = Demand(rank=8, step_tokens=4096, prompt_tokens=60, answer_tokens=48)
    least = estimate(shape, storing, long).least
    with pytest.raises(ModelError, match=r"would fit: gradient_checkpointing = true"):
        require_room(shape, storing, long, limit_bytes=int(0.8 * least))
    with pytest.raises(ModelError) as refused:
        require_room(shape, storing, long, limit_bytes=10**9)
    assert "fit: gradient_checkpointing" not in str(refused.value)


def test_where_nothing_fits_more_memory_is_the_remedy() -> None:
    shape = shape_of(config_of(load_profiles()["smollm2-135m"]))
    with pytest.raises(ModelError, match=r"What would fit: more memory$"):
        require_room(shape, Storing(dtype=torch.float32), DEMAND, limit_bytes=10**6)


def test_a_limit_that_nobody_set_is_not_called_one() -> None:
    shape = shape_of(config_of(load_profiles()["smollm2-135m"]))
    storing = Storing(dtype=torch.float32)
    said = str(too_little_memory(shape, storing, DEMAND, limit_bytes=10**6, is_set=False))
    assert said.startswith("device: its memory, 0.001 GB, does not suffice; it takes at least ")


def test_the_models_named_are_the_largest_that_fit_largest_first() -> None:
    named = profiles_within(24 * 10**9, DEMAND, dtype=torch.bfloat16)
    sizes = [profile.parameters for profile in named]
    assert sizes == sorted(sizes, reverse=True)
    assert len(named) == 3
    larger = [p for p in load_profiles().values() if p.parameters > sizes[0]]
    for profile in larger:
        storing = Storing(dtype=torch.bfloat16, group_size=profile.group_size)
        assert estimate(shape_of(config_of(profile)), storing, DEMAND).least > 24 * 10**9
    assert profiles_within(10**6, DEMAND, dtype=torch.bfloat16) == []
    in_full = profiles_within(24 * 10**9, DEMAND, dtype=torch.float32)
    dense = [max(p.parameters for p in found if p.bits == 16) for found in (named, in_full)]
    assert dense[1] < dense[0], "twice the bytes, and a smaller model"


def test_a_cpu_has_the_room_that_a_limit_names_and_no_peak() -> None:
    assert room_on([CPU], None) is None
    assert room_on([CPU], 5) == 5
    assert peak_gpu_bytes([CPU]) is None


@pytest.mark.parametrize(
    ("device", "capped"),
    [
        ("cuda:1", {"cuda:1": 0.25}),
        ("cuda", {"cuda:0": 0.5}),
        (None, {"cuda:0": 0.5}),
        ("split", {"cuda:0": 0.5, "cuda:1": 0.25}),
        ("cpu", {}),
    ],
)
def test_the_gpus_that_are_used_are_capped(
    device: str | None, capped: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gpu(number: int, total: int) -> Device:
        return Device(name=f"cuda:{number}", kind="x", total_bytes=total)

    cpu = Device(name="cpu", kind="x", total_bytes=None)
    monkeypatch.setattr(memory_limit, "list_devices", lambda: (gpu(0, 80), gpu(1, 160), cpu))
    fractions: dict[str, float] = {}
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda fraction, name: fractions.update({name: fraction}),
    )
    cap_memory(device, 40)
    assert fractions == capped
    cap_memory(device, None)
    assert fractions == capped
    cap_memory(device, 1000)
    assert set(fractions.values()) <= {1.0}


def test_gigabytes_keep_two_digits() -> None:
    assert say_gigabytes(24 * 10**9) == "24 GB"
    assert say_gigabytes(7_256_000_000) == "7.3 GB"
    assert say_gigabytes(4_200_000) == "0.0042 GB"
