"""Every GPTQ checkpoint of 4 bits is read as its layout says; what does not fit is named."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners import lora
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data.recipes import Recipe
from objectives.bank import Bank, export_adapter
from objectives.models.base import BaseModel, ModelError
from objectives.models.gptq.checkpoint import find_gptq, gptq_on_meta, load_gptq
from objectives.models.gptq.four_bit import FourBitLinear, quantise_round_to_nearest
from objectives.models.gptq.writing import GptqLayoutName, save_gptq
from tests.objectives.architectures import make_architecture
from tests.objectives.models.gptq.dense_twins import dense_model
from tests.objectives.pretend_devices import PretendDevices
from tests.objectives.tiny_llama import SIZES

FIRST = "model.layers.0.self_attn.q_proj"
LAYOUTS: tuple[GptqLayoutName, ...] = ("current", "2023")

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def llama(talking_base: BaseModel) -> BaseModel:
    """Return a Llama as of 2023: as many key as query heads; its output is not its embeddings."""
    config = LlamaConfig(
        **SIZES | {"num_key_value_heads": 4},
        vocab_size=len(talking_base.tokenizer),
        max_position_embeddings=48,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(8)
        model = LlamaForCausalLM(config)
    return dataclasses.replace(talking_base, model=model.eval().requires_grad_(False))


@pytest.fixture
def write(llama: BaseModel, tmp_path: Path) -> Write:
    """Return what writes the Llama as a checkpoint, by default in groups of 16."""

    def write_to(
        layout: GptqLayoutName = "current", *, group_size: int = 16, act_order: bool = False
    ) -> Path:
        folder = tmp_path / "checkpoint"
        save_gptq(
            llama.model,
            llama.tokenizer,
            folder,
            group_size=group_size,
            layout=layout,
            act_order=act_order,
        )
        return folder

    return write_to


def load(
    folder: Path,
    weights_file: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device_map: Mapping[str, str | int] = MappingProxyType({"": "cpu"}),
) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder)
    layout = find_gptq(folder, config, weights_file=weights_file)
    assert layout is not None
    return load_gptq(folder, config, layout, dtype=dtype, device_map=device_map)


def group_size_of(folder: Path) -> int:
    layout = find_gptq(folder, AutoConfig.from_pretrained(folder))
    assert layout is not None
    return layout.group_size


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return every 4-bit module's weights."""
    return {
        name: module.dequantise(torch.float32)
        for name, module in model.named_modules()
        if isinstance(module, FourBitLinear)
    }


def assert_same_weights(model: nn.Module, expected: Mapping[str, Tensor]) -> None:
    weights = weights_of(model)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def logits_of(model: nn.Module) -> Tensor:
    token_ids = torch.randint(4, 30, (3, 11), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits: Tensor = model(token_ids).logits
    return logits


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_settings(folder: Path, **fields: Any) -> None:
    """Change what a checkpoint of today's layout says of how it was quantised."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())["quantization_config"]
    change_json(path, quantization_config=settings | fields)


def weights_in(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return load_file(weights_in(folder))


def change_tensors(folder: Path, changed: Mapping[str, Tensor | None]) -> None:
    """Put tensors in the place of those of a checkpoint; None takes them out."""
    tensors = {**tensors_in(folder), **changed}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, weights_in(folder), metadata={"format": "pt"})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group_size", [16, -1])
@pytest.mark.parametrize("act_order", [False, True])
def test_both_layouts_hold_the_rounded_model(
    llama: BaseModel, write: Write, layout: GptqLayoutName, group_size: int, act_order: bool
) -> None:
    model = load(write(layout, group_size=group_size, act_order=act_order))
    weights = weights_of(model)
    assert len(weights) == 2 * 7
    for name, weight in weights.items():
        dense = llama.model.get_submodule(name).weight
        order = dense.norm(dim=0).argsort(descending=True) if act_order else None
        rounded = quantise_round_to_nearest(dense, group_size=group_size, order=order)
        assert torch.equal(weight, rounded.dequantise(torch.float32))
    assert torch.equal(model.lm_head.weight, llama.model.lm_head.weight.half().float())
    torch.testing.assert_close(logits_of(model), logits_of(dense_model(model)))
    # What is not in the file is there all the same.
    own, made = model.model.rotary_emb, llama.model.model.rotary_emb
    assert torch.equal(own.inv_freq, made.inv_freq)


def test_the_layout_of_2023_lacks_what_did_not_exist_then(write: Write) -> None:
    folder = write("2023")
    assert weights_in(folder).name == "llama-4bit-16g.safetensors"
    config = json.loads((folder / "config.json").read_text())
    assert not {"quantization_config", "rope_parameters", "head_dim"} & config.keys()
    tensors = tensors_in(folder)
    assert not any(name.endswith(".g_idx") for name in tensors)
    assert not tensors[f"{FIRST}.bias"].any()
    assert "model.layers.1.self_attn.rotary_emb.inv_freq" in tensors


@pytest.mark.parametrize("says", ["quantize_config.json", "the file's name", "only the shapes"])
def test_the_group_size_is_found_wherever_it_is_said(write: Write, says: str) -> None:
    folder = write("2023")
    if says != "quantize_config.json":
        (folder / "quantize_config.json").unlink()
    if says == "only the shapes":
        weights_in(folder).rename(folder / "gptq_model.safetensors")
    assert group_size_of(folder) == 16


def test_a_file_name_that_the_shapes_contradict_counts_for_nothing(write: Write) -> None:
    folder = write("2023")
    (folder / "quantize_config.json").unlink()
    weights_in(folder).rename(folder / "llama-4bit-128g.safetensors")
    assert group_size_of(folder) == 16


def test_one_group_of_all_inputs_is_told_from_the_shapes(write: Write) -> None:
    folder = write("2023", group_size=-1)
    (folder / "quantize_config.json").unlink()
    assert group_size_of(folder) == -1


def test_zero_points_are_read_as_they_are_in_the_second_format(write: Write) -> None:
    folder = write()
    expected = weights_of(load(folder))
    # One more in each of eight zero points; none is 15, for the sum would carry over then.
    zeros = {n: t for n, t in tensors_in(folder).items() if n.endswith(".qzeros")}
    change_tensors(folder, {name: tensor + 0x11111111 for name, tensor in zeros.items()})
    change_settings(folder, checkpoint_format="gptq_v2")
    assert_same_weights(load(folder), expected)


def test_zero_points_of_zero_are_read_as_gptqmodel_subtracts_them(write: Write) -> None:
    folder = write()
    # 0x76543210 less 0x11111111 is 0x654320FF: the lowest zero point borrowed from the next.
    real, stored = 0x76543210, 0x654320FF
    assert real - 0x11111111 == stored
    name = f"{FIRST}.qzeros"
    shape = tensors_in(folder)[name].shape
    change_tensors(folder, {name: torch.full(shape, stored, dtype=torch.int32)})
    change_settings(folder, meta={"quantizer": ["gptqmodel:7.6.0"]})
    own = load(folder).get_submodule(FIRST)
    change_tensors(folder, {name: torch.full(shape, real, dtype=torch.int32)})
    change_settings(folder, checkpoint_format="gptq_v2", meta={})
    expected = load(folder).get_submodule(FIRST)
    assert torch.equal(own.dequantise(torch.float32), expected.dequantise(torch.float32))


def test_shards_are_one_checkpoint(write: Write) -> None:
    folder = write()
    expected = weights_of(load(folder))
    tensors = tensors_in(folder)
    weights_in(folder).unlink()
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {name: file for file, held in shards.items() for name in held}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_same_weights(load(folder), expected)
    assert_same_weights(load(folder, path.name), expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors.*is missing"):
        load(folder)


def test_a_bias_counts_where_it_is_not_zero(write: Write) -> None:
    folder = write("2023")
    bias = torch.linspace(-1, 1, 32).half()
    change_tensors(folder, {f"{FIRST}.bias": bias})
    model = load(folder)
    biases = {
        name: module.bias
        for name, module in model.named_modules()
        if isinstance(module, FourBitLinear) and module.bias is not None
    }
    assert biases.keys() == {FIRST}
    assert torch.equal(biases[FIRST], bias)
    torch.testing.assert_close(logits_of(model), logits_of(dense_model(model)))


def test_the_output_may_be_quantised_too(llama: BaseModel, write: Write) -> None:
    folder = write()
    rows = torch.cat([llama.model.lm_head.weight, torch.zeros(4, 32)])  # a vocabulary of 36 + 4
    packed = quantise_round_to_nearest(rows, group_size=16)
    embedded = torch.cat([llama.model.model.embed_tokens.weight, torch.zeros(4, 32)]).half()
    change_json(folder / "config.json", vocab_size=40, tie_word_embeddings=True)
    change_tensors(
        folder,
        {"lm_head.weight": None, "model.embed_tokens.weight": embedded}
        | {f"lm_head.{part}": tensor for part, tensor in packed.state_dict().items()},
    )
    model = load(folder)
    assert torch.equal(model.lm_head.dequantise(torch.float32), packed.dequantise(torch.float32))
    assert not model.config.tie_word_embeddings
    torch.testing.assert_close(logits_of(model), logits_of(dense_model(model)))


@pytest.mark.parametrize("stored", ["once", "twice", "unlike"])
def test_output_and_embeddings_are_one_where_nothing_contradicts(
    write: Write, stored: str
) -> None:
    folder = write()
    change_json(folder / "config.json", tie_word_embeddings=True)
    embedded = tensors_in(folder)["model.embed_tokens.weight"]
    output = {"once": None, "twice": embedded.clone(), "unlike": embedded + 1}[stored]
    change_tensors(folder, {"lm_head.weight": output})
    model = load(folder)
    is_one = model.lm_head.weight is model.model.embed_tokens.weight
    assert is_one == model.config.tie_word_embeddings == (stored != "unlike")
    if output is not None:
        assert torch.equal(model.lm_head.weight, output.float())


@pytest.mark.parametrize("name", ["qwen2", "gemma", "gpt_neox", "opt", "phi"])
def test_other_architectures_are_read(talking_base: BaseModel, tmp_path: Path, name: str) -> None:
    base = make_architecture(name, talking_base.tokenizer)
    folder = tmp_path / name
    save_gptq(base.model, base.tokenizer, folder, group_size=16, layout="current")
    model = load(folder)
    assert weights_of(model)
    for own, parameter in model.named_parameters():
        assert torch.equal(parameter, base.model.get_parameter(own).half().float())
    torch.testing.assert_close(logits_of(model), logits_of(dense_model(model)))


def test_transposed_modules_of_gpt2_are_read(talking_base: BaseModel, tmp_path: Path) -> None:
    base = make_architecture("gpt2", talking_base.tokenizer)
    folder = tmp_path / "gpt2"
    linear = {n: m for n, m in base.model.named_modules() if isinstance(m, Conv1D)}
    tensors = {
        name: tensor.half()
        for name, tensor in base.model.state_dict().items()
        if name.rpartition(".")[0] not in linear and name != "lm_head.weight"
    }
    for name, module in linear.items():
        # auto-gptq packed their transpose, so that the tensors are those of any linear module.
        packed = quantise_round_to_nearest(module.weight.T, group_size=16, bias=module.bias)
        tensors |= {f"{name}.{part}": t.clone() for part, t in packed.state_dict().items()}
    # Buffers that GPT-2 saved once.
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    base.model.config.save_pretrained(folder)
    save_file(tensors, folder / "gptq_model-4bit-16g.safetensors")
    model = load(folder)
    assert weights_of(model).keys() == linear.keys()
    torch.testing.assert_close(logits_of(model), logits_of(dense_model(model)))


def test_only_what_is_not_quantised_is_cast(write: Write) -> None:
    model = load(write(), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    module = model.get_submodule(FIRST)
    assert module.scales.dtype == torch.float16
    assert logits_of(model).dtype == torch.bfloat16


def test_the_model_is_frozen_and_no_longer_says_that_it_is_quantised(write: Write) -> None:
    folder = write()
    config = AutoConfig.from_pretrained(folder)
    layout = find_gptq(folder, config)
    assert layout is not None
    change_json(folder / "generation_config.json", eos_token_id=[2, 7])
    model = load_gptq(folder, config, layout, dtype=torch.float32, device_map={"": "cpu"})
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model.config, "quantization_config")
    assert hasattr(config, "quantization_config"), "the caller's own is not changed"
    assert model.generation_config.eos_token_id == [2, 7]


def test_nothing_stays_a_view_of_the_file(write: Write) -> None:
    folder = write()
    model = load(folder, dtype=torch.float16)
    before = logits_of(model)
    path = weights_in(folder)
    path.write_bytes(bytes(path.stat().st_size))  # in place
    assert torch.equal(logits_of(model), before)


def test_every_part_goes_where_it_computes(write: Write) -> None:
    folder = write()
    expected = logits_of(load(folder))
    places = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1}
    places |= {"model.norm": 1, "model.rotary_emb": 1, "lm_head": 1}
    with PretendDevices():
        model = load(folder, device_map=places)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert len(tensors) == 3 + 2 * 2 + 2 * 7 * 4 + 2
        for name, tensor in tensors.items():
            (place,) = (each for part, each in places.items() if name.startswith(part))
            assert tensor.device == torch.device("cuda", place), name
        token_ids = torch.randint(4, 30, (3, 11), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            logits = model(token_ids.to("cuda:0")).logits.cpu()
    assert torch.equal(logits, expected)


def test_without_weights_it_has_the_size_that_it_will_have(write: Write) -> None:
    folder = write()
    config = AutoConfig.from_pretrained(folder)
    layout = find_gptq(folder, config)
    assert layout is not None
    empty = gptq_on_meta(config, layout, dtype=torch.bfloat16)
    full = load(folder, dtype=torch.bfloat16)
    shapes = {name: (t.shape, t.dtype) for name, t in full.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in empty.state_dict().items()} == shapes
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert not empty.model.rotary_emb.inv_freq.is_meta


# An older name of what transformers calls activation checkpointing now.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapter_trained_on_it_reloads_in_plain_peft(
    llama: BaseModel, write: Write, tmp_path: Path, layout: GptqLayoutName
) -> None:
    base = dataclasses.replace(llama, model=load(write(layout)))
    bank = Bank(base, slots=2, max_rank=4)
    recipe = Recipe(epochs=9, rank=4, alpha=8, cutoff=48, warmup_steps=2, learning_rate=1e-2)
    texts = [" ".join(f"w{(7 * text + word) % 24}" for word in range(9)) for text in range(8)]
    for slot in range(2):
        bank.admit(slot, recipe, lambda _epoch: texts, seed=slot)
    for _ in range(8):
        bank.step()
    export_adapter(bank, 1, tmp_path / "adapter")
    with bank.answering([1] * 3 * 11):
        adapted = logits_of(base.model)
    assert (adapted - logits_of(base.model)).abs().max() > 0.1, "the adapter does nothing"

    dense = PeftModel.from_pretrained(dense_model(base.model), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(dense), adapted, atol=1e-4, rtol=1e-4)
    # PEFT's layer for linear modules also takes ours, once it is told so.
    config = LoraConfig.from_pretrained(str(tmp_path / "adapter"))
    config._register_custom_module({FourBitLinear: lora.Linear})
    with pytest.warns(UserWarning, match="Unsupported layer type"):
        ours = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"), config=config)
    torch.testing.assert_close(logits_of(ours), adapted, atol=1e-4, rtol=1e-4)


def test_a_folder_without_gptq_weights_is_none(llama: BaseModel, tmp_path: Path) -> None:
    llama.model.save_pretrained(tmp_path / "dense")
    config = AutoConfig.from_pretrained(tmp_path / "dense")
    assert find_gptq(tmp_path / "dense", config) is None
    config.quantization_config = {"quant_method": "awq", "bits": 4}
    assert find_gptq(tmp_path / "dense", config) is None


def test_which_of_several_files_is_meant_must_be_said(llama: BaseModel, write: Write) -> None:
    folder = write("2023")
    expected = weights_of(load(folder))
    config = AutoConfig.from_pretrained(folder)
    save_file({"lm_head.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"llama-4bit-16g\.safetensors, model\.safetensors.*loading\.weights_file"
    ):
        find_gptq(folder, config)
    assert_same_weights(load(folder, "llama-4bit-16g.safetensors"), expected)
    assert find_gptq(folder, config, weights_file="model.safetensors") is None
    with pytest.raises(
        ModelError, match=r"loading\.weights_file: 'other' is not allowed.*llama-4bit"
    ):
        find_gptq(folder, config, weights_file="other")


def test_what_is_not_named_need_not_be_complete(write: Write) -> None:
    folder = write("2023")
    # Of a repository every small file is fetched, and of the weights only what is named.
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "model-1-of-2.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-1-of-2\.safetensors.*is missing"):
        find_gptq(folder, AutoConfig.from_pretrained(folder))
    assert weights_of(load(folder, "llama-4bit-16g.safetensors"))


def test_an_adapter_beside_the_weights_is_no_checkpoint(write: Write) -> None:
    folder = write()
    save_file({"a": torch.ones(2)}, folder / "adapter_model.safetensors")
    assert find_gptq(folder, AutoConfig.from_pretrained(folder)) is not None


def test_pickled_weights_are_named_and_not_read(write: Write) -> None:
    folder = write("2023")
    weights_in(folder).rename(folder / "llama-4bit-16g.pt")
    with pytest.raises(
        ModelError, match=r"quantize_config\.json says.*llama-4bit-16g\.pt are pickled"
    ):
        load(folder)


NEW_TENSORS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "a scale is missing": (
        {f"{FIRST}.scales": None},
        rf"{FIRST}\.scales is missing",
    ),
    "a norm is missing": (
        {"model.norm.weight": None},
        r"the checkpoint lacks model\.norm\.weight; fetch",
    ),
    "an unknown tensor": (
        {"model.layers.0.self_attn.q_proj.shift": torch.ones(2)},
        rf"no place for: {FIRST}\.shift; fetch",
    ),
    "a bias of another size": (
        {f"{FIRST}.bias": torch.zeros(5)},
        rf"no place for: {FIRST}\.bias",
    ),
    "a tensor of another shape": (
        {"model.norm.weight": torch.ones(31)},
        r"model\.norm\.weight has the shape \[31\] in the weights, and \[32\]",
    ),
    "unpacked zeros": (
        {f"{FIRST}.zeros": torch.ones(2, 32)},
        f"{FIRST} has unpacked zeros, as before March 2023",
    ),
    "a module that there is not": (
        {
            f"model.layers.7.up.{part}": torch.zeros(shape, dtype=dtype)
            for part, shape, dtype in (
                ("qweight", (4, 32), torch.int32),
                ("qzeros", (2, 4), torch.int32),
                ("scales", (2, 32), torch.float16),
            )
        },
        r"model\.layers\.7\.up is quantised in the weights.*no linear module of that name",
    ),
    "groups of other sizes": (
        {f"{FIRST}.g_idx": torch.zeros(32, dtype=torch.int32)},
        rf"{FIRST}\.g_idx does not give every group 16 inputs",
    ),
    "AWQ's layout": (
        {f"{FIRST}.qweight": torch.zeros(32, 4, dtype=torch.int32)},
        rf"tensors of {FIRST} are not laid out as GPTQ's: qweight \[32, 4\] I32",
    ),
    "eight bits": (
        {
            f"{FIRST}.qweight": torch.zeros(8, 32, dtype=torch.int32),
            f"{FIRST}.qzeros": torch.zeros(2, 8, dtype=torch.int32),
        },
        "bits 4 of config.json is not allowed; the weights have 8",
    ),
}


@pytest.mark.parametrize("case", NEW_TENSORS)
def test_tensors_that_do_not_fit_are_named(write: Write, case: str) -> None:
    folder = write()
    changed, message = NEW_TENSORS[case]
    change_tensors(folder, changed)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_other_bits_are_refused_with_the_remedy(write: Write) -> None:
    folder = write()
    changed, _ = NEW_TENSORS["eight bits"]
    change_tensors(folder, changed)
    change_settings(folder, bits=8)
    with pytest.raises(ModelError, match=r'8-bit weights of .*loading\.gptq = "gptqmodel"'):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'.*gptq = \"gptqmodel\""),
        ({"is_marlin_format": True}, "checkpoint_format 'marlin'"),
        ({"bits": "four"}, "bits 'four' of config.json is not allowed; it must be a whole number"),
        ({"group_size": 32}, "group_size 32 of config.json .*down_proj has 48 inputs in 3 groups"),
        ({"group_size": 0}, "group_size 0 of config.json is not allowed; it must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    write: Write, settings: dict[str, Any], message: str
) -> None:
    folder = write()
    change_settings(folder, **settings)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_an_order_that_was_not_saved_is_not_guessed(write: Write) -> None:
    folder = write("2023")
    change_json(folder / "quantize_config.json", desc_act=True)
    with pytest.raises(ModelError, match=r"lacks .*\.g_idx, without which desc_act of quantize"):
        load(folder)


def test_a_group_size_that_cannot_be_told_is_asked_for(write: Write) -> None:
    folder = write("2023")
    (folder / "quantize_config.json").unlink()
    path = weights_in(folder)
    tensors = tensors_in(folder)
    for name in [name for name in tensors if name.endswith("qzeros")]:
        # Five groups of 32 inputs, the last smaller: of 7 each, and of no other size.
        scales = name.replace("qzeros", "scales")
        tensors[name] = tensors[name][:1].expand(5, -1).contiguous()
        tensors[scales] = tensors[scales][:1].expand(5, -1).contiguous()
    save_file(tensors, folder / "model.safetensors")
    path.unlink()
    with pytest.raises(ModelError, match=r"group size of model\.safetensors cannot be told"):
        load(folder)


def test_a_model_of_other_sizes_is_named(write: Write) -> None:
    folder = write()
    change_json(folder / "config.json", hidden_size=64, head_dim=8)
    with pytest.raises(
        ModelError, match="down_proj has 48 inputs and 32 outputs in the weights, and 48 and 64 by"
    ):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_file_is_named(write: Write, name: str) -> None:
    folder = write("2023" if name == "config.json" else "current")
    config = AutoConfig.from_pretrained(folder)
    broken = folder / ("quantize_config.json" if name == "config.json" else name)
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ModelError, match=f"{re.escape(str(broken))} cannot be read.*fetch it"):
        find_gptq(folder, config)


def test_an_unknown_architecture_is_refused(write: Write) -> None:
    folder = write()
    config = AutoConfig.from_pretrained(folder)
    layout = find_gptq(folder, config)
    assert layout is not None
    other = AutoConfig.for_model("t5")
    with pytest.raises(ModelError, match="'t5' is not a model that the built-in GPTQ reader"):
        gptq_on_meta(other, layout, dtype=torch.float32)
