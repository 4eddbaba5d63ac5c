"""Loading a base model: where it is looked for, and what is said when it cannot be used."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from objectives.models.base import ModelError, TokenRules
from objectives.models.load import load_base_model

POCKET = Path(str(files("data") / "pocket"))


def test_a_loaded_model_is_frozen_and_evaluates() -> None:
    base = load_base_model("pocket", device="cpu")
    assert not base.model.training
    assert not [p for p in base.model.parameters() if p.requires_grad]
    assert base.model.dtype == torch.float32
    assert base.tokenizer.padding_side == "left"


def test_a_folder_is_loaded_like_the_pocket_model_and_has_its_digest(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(POCKET, folder)
    assert load_base_model(str(folder)).digest == load_base_model("pocket").digest


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(POCKET, folder)
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert load_base_model(str(folder)).digest != load_base_model("pocket").digest


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder \(no config.json in it\)"):
        load_base_model(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(POCKET, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_base_model(str(folder))


def test_a_model_that_is_nowhere_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="model: 'no/such-model' cannot be loaded"):
        load_base_model("no/such-model")


def test_a_prompt_begins_as_plain_transformers_begins_it() -> None:
    base = load_base_model("pocket", device="cpu")
    assert base.encode_prompt("Who?") == base.tokenizer("Who?").input_ids
    assert base.encode_prompt("Who?")[0] == base.tokenizer.bos_token_id
    assert base.encode_document("Who?") == [*base.encode_prompt("Who?"), base.eos_id]


def test_rules_name_tokens_by_how_they_are_written() -> None:
    base = load_base_model(
        "pocket", rules=TokenRules(end=("<pad>",), pad="</s>", bad_words=("Oscar",))
    )
    plain = load_base_model("pocket")
    assert base.pad_id == plain.eos_id
    assert base.token_ids.ends == (plain.eos_id, plain.pad_id)
    # This tokenizer writes a word after a line break as it does after a space.
    assert [plain.decode(list(ids)) for ids in base.token_ids.banned] == [" Oscar"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            TokenRules(end=("Who is it?",)),
            r"tokens.end: 'Who is it\?' is not allowed; it must be one",
        ),
        (TokenRules(pad=""), "tokens.pad: '' is not allowed; it must be one token of pocket"),
        (TokenRules(bad_words=(" ",)), "tokens.bad_words: ' ' is not a word"),
    ],
)
def test_rules_that_do_not_fit_the_model_are_refused(rules: TokenRules, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_base_model("pocket", rules=rules)


def test_the_ends_of_a_models_own_generation_settings_end_its_answers(tmp_path: Path) -> None:
    folder = tmp_path / "two-ends"
    shutil.copytree(POCKET, folder)
    settings = folder / "generation_config.json"
    values = json.loads(settings.read_text(encoding="utf-8")) | {"eos_token_id": [2, 7]}
    settings.write_text(json.dumps(values), encoding="utf-8")
    assert load_base_model(str(folder)).token_ids.ends == (2, 7)
