"""Where the parts of a model are put, and what is said of a model that fits nowhere."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from accelerate import init_empty_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from objectives.models.base import BaseModel, ModelError, input_device
from objectives.models.gptq.four_bit import quantise_linears
from objectives.models.machine import placement
from objectives.models.machine.devices import Device
from objectives.models.machine.placement import devices_of, dispatch, is_offloaded, plan_device_map
from tests.objectives.pretend_devices import PretendDevices

LAYERS = 12
# One layer has 4 * 64^2 + 3 * 64 * 128 weights and two norms of 64, in fp32.
LAYER_BYTES = 4 * (4 * 64**2 + 3 * 64 * 128 + 2 * 64)
# Embeddings and head of 256 tokens, and the last norm.
OTHER_BYTES = 4 * (2 * 256 * 64 + 64)

Machine = Callable[..., None]


@cache
def make_model() -> PreTrainedModel:
    """Return a model without numbers, which no test changes."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=256,
    )
    with init_empty_weights():
        return LlamaForCausalLM(config)


@pytest.fixture
def model() -> PreTrainedModel:
    return make_model()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep accelerate from saying that the pretended GPUs are not there."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that makes GPUs with so many bytes free, and so much main memory."""

    def has(*gpus: float, main_memory: float = 1e9) -> None:
        cpu = Device(name="cpu", kind="2 threads", total_bytes=None)
        free = {f"cuda:{number}": int(each) for number, each in enumerate(gpus)}
        listed = [Device(name=name, kind="pretended", total_bytes=10**12) for name in free]
        monkeypatch.setattr(placement, "list_devices", lambda: (*listed, cpu))
        monkeypatch.setattr(placement, "free_bytes", free.__getitem__)
        memory = SimpleNamespace(available=int(main_memory))
        monkeypatch.setattr("psutil.virtual_memory", lambda: memory)

    return has


def layers_by_place(device_map: dict[str, str | int]) -> list[str | int]:
    """Return the place of every layer, in order; a split layer has none and is an error."""
    return [device_map[f"model.layers.{number}"] for number in range(LAYERS)]


def test_a_whole_model_goes_to_the_device_that_is_named(
    model: PreTrainedModel, machine: Machine
) -> None:
    machine(1e9, 1e9)
    for device in ("cpu", "cuda", "cuda:1"):
        planned = plan_device_map(model, device=device, memory_limit_bytes=None)
        assert planned == {"": device}


def test_layers_are_spread_evenly_in_order_and_whole(
    model: PreTrainedModel, machine: Machine
) -> None:
    machine(1e9, 1e9)
    planned = plan_device_map(model, device="split", memory_limit_bytes=None)
    places = layers_by_place(planned)
    assert places == sorted(places, key=str)
    assert abs(Counter(places)[0] - Counter(places)[1]) <= 2
    assert planned["model.embed_tokens"] == 0


def test_unequal_gpus_are_filled_before_main_memory(
    model: PreTrainedModel, machine: Machine
) -> None:
    whole = LAYERS * LAYER_BYTES + OTHER_BYTES
    machine(1.1 * whole / 0.75, LAYER_BYTES / 2)
    planned = plan_device_map(model, device="split", memory_limit_bytes=None)
    assert set(planned.values()) == {0}


def test_what_is_too_much_for_the_gpus_stays_in_main_memory(
    model: PreTrainedModel, machine: Machine
) -> None:
    machine(8 * LAYER_BYTES / 0.75)
    planned = plan_device_map(model, device="split", memory_limit_bytes=None)
    places = layers_by_place(planned)
    # Of the room for eight layers one is for a layer that is copied in, and embeddings take some.
    on_gpu = 7 - -(-4 * 256 * 64 // LAYER_BYTES)
    assert places == [0] * on_gpu + ["cpu"] * (LAYERS - on_gpu)
    machine(1e9)
    limited = plan_device_map(
        model, device="split", memory_limit_bytes=int(8 * LAYER_BYTES / 0.75)
    )
    assert limited == planned


def test_without_a_gpu_all_is_in_main_memory(model: PreTrainedModel, machine: Machine) -> None:
    machine()
    assert plan_device_map(model, device="split", memory_limit_bytes=None) == {"": "cpu"}


def test_weights_in_four_bits_are_counted_as_they_are_stored(machine: Machine) -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, vocab_size=256
    )
    model = LlamaForCausalLM(config)
    quantise_linears(model, group_size=64)
    held = sum(each.numel() * each.element_size() for each in model.parameters())
    held += sum(each.numel() * each.element_size() for each in model.buffers())
    machine(held)
    plan_device_map(model, device="cuda", memory_limit_bytes=None)
    machine(held - 1)
    with pytest.raises(ModelError, match="fit"):
        plan_device_map(model, device="cuda", memory_limit_bytes=None)


@settings(max_examples=25, deadline=None)
@given(
    rooms=st.lists(st.integers(0, 20 * LAYER_BYTES), min_size=1, max_size=4),
    main_memory=st.integers(0, 20 * LAYER_BYTES),
)
def test_no_place_holds_more_than_it_has_room_for(rooms: list[int], main_memory: int) -> None:
    model = make_model()
    try:
        planned = placement._split(model, rooms, main_memory)
    except ModelError:
        # Nothing of the model goes where there is room for less than embeddings and two layers.
        useful = [room for room in rooms if room > 2 * LAYER_BYTES + OTHER_BYTES]
        unused = (len(rooms) + 1) * (2 * LAYER_BYTES + OTHER_BYTES)
        needed = LAYERS * LAYER_BYTES + OTHER_BYTES
        assert not useful or sum(rooms) + main_memory < needed + unused
        return
    held: Counter[str | int] = Counter()
    for name, weight in model.named_parameters():
        held[placement._place_of(name, planned)] += 4 * weight.numel()
    assert held.total() == LAYERS * LAYER_BYTES + OTHER_BYTES
    assert all(held[number] <= room for number, room in enumerate(rooms))
    assert held["cpu"] <= main_memory


def test_a_model_that_fits_nowhere_is_refused_with_what_would_fit(
    model: PreTrainedModel, machine: Machine
) -> None:
    machine(4e9, 4e9, main_memory=4e9)
    config = LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        vocab_size=32000,
    )
    with init_empty_weights():
        thirteen_billion = LlamaForCausalLM(config).to(torch.bfloat16)
    # 13.016 billion parameters of two bytes; three quarters of 4 GB twice and 4 GB are 10 GB, for
    # 5 billion parameters of 2 bytes or 17.9 billion of 0.56.
    with pytest.raises(
        ModelError, match=r"'split'.* 26\.0 GB, .* 10\.0 GB in whole .* 5\.0 b.* 17\.9 b"
    ):
        plan_device_map(thirteen_billion, device="split", memory_limit_bytes=None)
    with pytest.raises(ModelError, match=r"'cuda:1'.* 26\.0 GB.* 4\.0 GB; .*'split'"):
        plan_device_map(thirteen_billion, device="cuda:1", memory_limit_bytes=None)
    with pytest.raises(ModelError, match=r"'cuda:1'.* 26\.0 GB.* 3\.0 GB"):
        plan_device_map(thirteen_billion, device="cuda:1", memory_limit_bytes=3 * 10**9)
    with pytest.raises(ModelError, match=r"'cpu'.* 26\.0 GB.* 4\.0 GB; choose a higher"):
        plan_device_map(thirteen_billion, device="cpu", memory_limit_bytes=None)


def test_a_gpu_without_room_for_a_layer_is_refused(
    model: PreTrainedModel, machine: Machine
) -> None:
    machine(LAYER_BYTES)
    with pytest.raises(ModelError, match="room for the embeddings and two layers"):
        plan_device_map(model, device="split", memory_limit_bytes=None)


def test_inputs_go_where_the_embeddings_are(talking_base: BaseModel) -> None:
    parts = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
    with PretendDevices():
        model = dispatch(
            copy.deepcopy(talking_base.model),
            dict(zip(parts, (1, "cpu", 0, 0, 0), strict=True)),
        )
        assert input_device(model) == torch.device("cuda:1")
        assert devices_of(model) == (torch.device("cuda:1"), torch.device("cuda:0"))
        assert is_offloaded(model)
        logits = model(torch.ones(1, 3, dtype=torch.long, device="cuda:1")).logits
        assert logits.device == torch.device("cuda:1")
        assert dispatch(model, {"": "cuda:0"}) is model, "it is placed once"


def test_a_model_on_one_device_is_left_without_hooks(talking_base: BaseModel) -> None:
    model = dispatch(copy.deepcopy(talking_base.model), {"": "cpu"})
    assert devices_of(model) == (torch.device("cpu"),)
    assert not is_offloaded(model)
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
