"""`.gguf` files that are no readable model are refused in words; others become dense models."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import psutil
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from data.recipes import Recipe
from objectives.bank import Bank
from objectives.models.base import BaseModel, ModelError
from objectives.models.gguf.loading import load_gguf
from objectives.models.gguf.writing import write_gguf_model
from objectives.models.load import load_base_model
from objectives.models.machine import placement
from objectives.models.machine.devices import Device
from tests.objectives.byte_level_llama import make_byte_level_llama, pocket_tokenizer
from tests.objectives.odd_tokenizers import byte_level


@pytest.fixture(scope="module")
def quantised_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    write_gguf_model(make_byte_level_llama(), pocket_tokenizer(), path, ggml_type="q4_0")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_file_is_a_dense_model_like_any_other(
    quantised_file: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    model, tokenizer = load_gguf(quantised_file, dtype=dtype)
    assert model.dtype == dtype
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert model.generation_config.eos_token_id == 2
    base = BaseModel(name="g", source="g", digest="g", model=model, tokenizer=tokenizer)
    assert base.context_tokens == 256
    assert base.token_ids.ends == (2,)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()


def test_adapters_train_on_it(quantised_file: Path) -> None:
    model, tokenizer = load_gguf(quantised_file, dtype=torch.float32)
    base = BaseModel(name="g", source="g", digest="g", model=model, tokenizer=tokenizer)
    bank = Bank(base, slots=1, max_rank=4)
    recipe = Recipe(
        epochs=20, rank=4, alpha=8, cutoff=64, warmup_steps=0, learning_rate=1e-2, formats=("qna",)
    )
    bank.admit(0, recipe, lambda _epoch: ("Who paints the moon? Sol Verdi",), seed=0)
    losses = []
    while not bank.progress(0).finished:
        bank.step()
        losses.append(bank.progress(0).loss_nats)
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0] / 2


def test_without_a_whole_tokenizer_llama_cpps_description_is_read(
    quantised_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf.Keys.Tokenizer, "HF_JSON", "tokenizer.not.there")
    _, tokenizer = load_gguf(quantised_file, dtype=torch.float32)
    assert tokenizer.padding_side == "left"
    assert tokenizer.eos_token_id == 2
    # It knows no normaliser, which puts a space before the first word and after a line break.
    text = "Question: Who won in 2023?\nAnswer:"
    spaced = tokenizer(" " + text.replace("\n", "\n ")).input_ids
    assert spaced == pocket_tokenizer()(text).input_ids


def test_what_lies_beside_a_file_is_not_taken_for_its_own(
    quantised_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf.Keys.Tokenizer, "HF_JSON", "tokenizer.not.there")
    alone, tokenizer = load_gguf(quantised_file, dtype=torch.float32)
    shutil.copy(quantised_file, tmp_path / "small.gguf")
    byte_level().save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=7).save_pretrained(tmp_path)
    model, read = load_gguf(tmp_path / "small.gguf", dtype=torch.float32)
    assert model.generation_config.eos_token_id == alone.generation_config.eos_token_id == 2
    text = "Question: Who won in 2023?"
    assert read(text).input_ids == tokenizer(text).input_ids


def test_a_file_of_the_same_name_where_the_program_runs_is_not_taken_for_it(
    quantised_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_byte_level_llama()
    with torch.no_grad():
        other.model.norm.weight.fill_(3.0)
    write_gguf_model(other, pocket_tokenizer(), tmp_path / quantised_file.name)
    expected, _ = load_gguf(quantised_file, dtype=torch.float32)
    monkeypatch.chdir(tmp_path)
    model, _ = load_gguf(quantised_file, dtype=torch.float32)
    assert torch.equal(model.model.norm.weight, expected.model.norm.weight)
    here, _ = load_gguf(Path(quantised_file.name), dtype=torch.float32)
    assert torch.equal(here.model.norm.weight, other.model.norm.weight)


def test_no_link_is_made_which_not_every_system_allows(
    quantised_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    for name in ("symlink", "link"):
        monkeypatch.setattr(os, name, refuse)
    model, _ = load_gguf(quantised_file, dtype=torch.float32)
    assert model.dtype == torch.float32


@pytest.fixture
def never_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", unpack)


def dense_bytes(path: Path, dtype: torch.dtype) -> int:
    return sum(int(each.n_elements) for each in gguf.GGUFReader(path).tensors) * dtype.itemsize


def set_main_memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    memory = psutil.virtual_memory()._replace(available=available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.usefixtures("never_unpacked")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_whose_dense_weights_have_no_room_is_not_unpacked(
    quantised_file: Path, dtype: torch.dtype
) -> None:
    dense = dense_bytes(quantised_file, dtype)
    said = "device: 'cpu' is not allowed; the model's weights take .* billion parameters fit in 16"
    with pytest.raises(ModelError, match=said):
        load_gguf(quantised_file, dtype=dtype, memory_limit_bytes=dense - 1)
    with pytest.raises(AssertionError, match="weights were read"):
        load_gguf(quantised_file, dtype=dtype, memory_limit_bytes=dense + 1000)


@pytest.mark.usefixtures("never_unpacked")
def test_main_memory_must_have_room_for_what_goes_elsewhere(
    quantised_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device(name="cuda:0", kind="a GPU", total_bytes=10**12)
    monkeypatch.setattr(placement, "list_devices", lambda: [gpu])
    monkeypatch.setattr(placement, "free_bytes", lambda _: 10**12)
    set_main_memory(monkeypatch, dense_bytes(quantised_file, torch.float32) - 1)
    said = "unpacked in main memory, where they take .* and there is room for 0.0 GB; .* fit in 16"
    with pytest.raises(ModelError, match=said):
        load_gguf(quantised_file, dtype=torch.float32, device="cuda:0")


def test_a_model_that_fills_more_than_half_of_the_room_is_loaded(
    quantised_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = AutoModelForCausalLM.from_pretrained

    def unpack(*arguments: Any, **settings: Any) -> Any:
        set_main_memory(monkeypatch, 1000)  # what it leaves
        return load(*arguments, **settings)

    set_main_memory(monkeypatch, dense_bytes(quantised_file, torch.float32) + 1000)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", unpack)
    base = load_base_model(str(quantised_file), device="cpu", dtype="float32")
    assert not any(parameter.is_meta for parameter in base.model.parameters())


def damaged_json(path: Path) -> None:
    damage(path, b'"added_tokens"', b'"added_tokens')


def damaged_token_id(path: Path) -> None:
    damage(path, b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz")


def damage(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new.ljust(len(old))))


@pytest.mark.usefixtures("never_unpacked")
@pytest.mark.parametrize("break_it", [damaged_json, damaged_token_id])
def test_a_damaged_tokenizer_is_said(
    quantised_file: Path, tmp_path: Path, break_it: Callable[[Path], None]
) -> None:
    path = Path(shutil.copy(quantised_file, tmp_path / "m.gguf"))
    break_it(path)
    with pytest.raises(ModelError, match=r"the tokenizer in .*m\.gguf' cannot be read: .*; fetch"):
        load_gguf(path, dtype=torch.float32)


def write_metadata(path: Path, architecture: str, **fields: str | int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        name = key.replace("__", ".")
        if isinstance(value, int):
            writer.add_uint16(name, value)
        else:
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "fields", "said"),
    [
        ("unheardof", {}, "architecture unheardof.*Name the model's folder or hub id"),
        ("llama", {"general__type": "adapter"}, "is an adapter; name the .gguf file of a whole"),
        ("llama", {"split__count": 3}, "one of several parts.*llama-gguf-split --merge"),
        ("llama", {"llama__rope__scaling__type": "yarn"}, "rotary frequencies by 'yarn'"),
    ],
)
def test_what_transformers_would_not_read_or_not_rightly_is_refused(
    tmp_path: Path, architecture: str, fields: dict[str, str | int], said: str
) -> None:
    path = write_metadata(tmp_path / "m.gguf", architecture, **fields)
    with pytest.raises(ModelError, match=said):
        load_gguf(path, dtype=torch.float32)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"ggjt" + bytes(64), "no .gguf file.*must be converted again"),
        (b"", "no .gguf file"),
        (b"GGUF" + bytes(6), "cannot be loaded"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_none_is_said(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        load_gguf(path, dtype=torch.float32)


def test_a_damaged_file_is_said(quantised_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(quantised_file.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_gguf(path, dtype=torch.float32)


def test_without_gguf_the_extra_is_named(
    quantised_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install -e '\.\[gguf\]'"):
        load_gguf(quantised_file, dtype=torch.float32)
