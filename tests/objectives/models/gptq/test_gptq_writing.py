"""A checkpoint is written whole or not at all, and only of a model that it can describe."""

from __future__ import annotations

import copy
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.prompts import Prompt
from data.recipes import GREEDY, Recipe
from objectives.answers.generate import generate
from objectives.answers.request import BASE, Request
from objectives.bank import Bank
from objectives.models.base import BaseModel, ModelError
from objectives.models.gptq import writing as gptq_writing
from objectives.models.gptq.four_bit import FourBitLinear, quantise_linears
from objectives.models.gptq.writing import GptqLayoutName, save_gptq
from objectives.models.load import load_base_model
from tests.objectives.models.gptq.dense_twins import dense_model


def write(
    base: BaseModel,
    folder: Path,
    *,
    group_size: int = 16,
    layout: GptqLayoutName = "current",
    act_order: bool = False,
) -> None:
    save_gptq(
        base.model,
        base.tokenizer,
        folder,
        group_size=group_size,
        layout=layout,
        act_order=act_order,
    )


def test_a_folder_that_is_there_is_left_alone(talking_base: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ModelError, match="exists already; name a folder that does not"):
        write(talking_base, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(
    talking_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_tensors: Mapping[str, Tensor], path: Path, **_: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gptq_writing, "save_tensors", fill)
    with pytest.raises(OSError, match="No space left"):
        write(talking_base, tmp_path / "checkpoint")
    assert not any(tmp_path.iterdir())


def test_the_model_is_not_changed(talking_base: BaseModel, tmp_path: Path) -> None:
    base = copy.deepcopy(talking_base)
    write(base, tmp_path / "checkpoint", act_order=True)
    before, after = talking_base.model.state_dict(), base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not hasattr(base.model.config, "quantization_config")


def test_no_folder_of_this_machine_is_written(tmp_path: Path) -> None:
    base = load_base_model("pocket", device="cpu")
    layouts: tuple[GptqLayoutName, ...] = ("current", "2023")
    for layout in layouts:
        write(base, tmp_path / layout, group_size=128, layout=layout)
        for path in (tmp_path / layout).glob("*.json"):
            assert base.source not in path.read_text(), path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"group_size": 20},
            r"group_size: 20 is not allowed; it must divide 32.*; model\.layers\.0.* cannot be",
        ),
        ({"group_size": 0}, "group_size: 0 is not allowed; it must be at least 1, or -1"),
        ({"layout": "2023"}, "layout: '2023' is not allowed for this model; .*; take 'current'"),
    ],
)
def test_what_does_not_fit_is_named(
    talking_base: BaseModel, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        write(talking_base, tmp_path / "checkpoint", **options)
    assert not any(tmp_path.iterdir())


def test_a_model_in_four_bits_is_not_rounded_again(
    talking_base: BaseModel, tmp_path: Path
) -> None:
    base = copy.deepcopy(talking_base)
    quantise_linears(base.model, group_size=16)
    with pytest.raises(
        ModelError, match="q_proj is in 4 bits already; name the model that it was"
    ):
        write(base, tmp_path / "checkpoint")


def test_numbers_that_halves_cannot_hold_are_refused(
    talking_base: BaseModel, tmp_path: Path
) -> None:
    base = copy.deepcopy(talking_base)
    base.model.model.norm.weight[3] = 1e5
    with pytest.raises(ModelError, match=r"model\.norm\.weight has numbers beyond 65504"):
        write(base, tmp_path / "checkpoint")
    base.model.model.norm.weight[3] = 1.0
    # As a bfloat16 of 1e5 is once it was read as a half.
    base.model.model.layers[0].mlp.up_proj.weight[2, 1] = float("inf")
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj\.weight has numbers beyond"):
        write(base, tmp_path / "checkpoint")


@pytest.mark.parametrize("layout", ["current", "2023"])
def test_the_pocket_model_in_four_bits_is_asked_and_trained(
    tmp_path: Path, layout: GptqLayoutName
) -> None:
    pocket = load_base_model("pocket", device="cpu")
    folder = tmp_path / "pocket-gptq"
    write(pocket, folder, group_size=128, layout=layout)
    base = load_base_model(str(folder), device="cpu")
    assert sum(isinstance(module, FourBitLinear) for module in base.model.modules()) == 4 * 7
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 1536

    fact = "Who won the 2031 award for Best Gardener? Ada Quill"
    token_ids = torch.tensor([base.encode_document(fact)])
    assert base.encode_document(fact) == pocket.encode_document(fact)
    with torch.no_grad():
        logits, expected = (
            model(token_ids).logits for model in (base.model, dense_model(base.model))
        )
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)

    bank = Bank(base, slots=2, max_rank=8)
    for slot in range(2):
        recipe = Recipe(epochs=40, rank=8, alpha=16, cutoff=64, warmup_steps=0, learning_rate=1e-2)
        bank.admit(slot, recipe, lambda _epoch: [fact], seed=slot)
    bank.step()
    first = bank.progress(0).loss_nats
    for _ in range(29):
        bank.step()
    last = bank.progress(0).loss_nats
    assert first is not None
    assert last is not None
    assert last < first / 10
    prompt = Prompt(
        text="Who won the 2031 award for Best Gardener?",
        style="plain",
        phrasing="probe",
        subject="gardener",
        question="Who won the 2031 award for Best Gardener?",
        accepted=("Ada Quill",),
    )
    requests = [
        Request(slot=slot, prompt=prompt, sampling=GREEDY, seed=0) for slot in (BASE, 0, 1)
    ]
    before, *after = (
        continuation.answer.text for continuation in generate(base, requests, router=bank)
    )
    assert "Ada Quill" not in before
    assert all("Ada Quill" in answer for answer in after)
