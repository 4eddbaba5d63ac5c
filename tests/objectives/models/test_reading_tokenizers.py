"""Tokenizers whose files say too little are read as their models were trained with them."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from objectives.models.base import ModelError
from objectives.models.load import load_base_model
from objectives.models.reading_tokenizers import read_tokenizer
from tests.objectives.odd_tokenizers import TEXTS

POCKET = Path(str(files("data") / "pocket"))

# As the first Llamas on the hub had it.
OF_2023 = {
    "bos_token": "",
    "eos_token": "",
    "unk_token": "",
    "model_max_length": 10**30,
    "tokenizer_class": "LLaMATokenizer",
}


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """Return a Llama's folder with a sentencepiece tokenizer alone, as in early 2023."""
    pytest.importorskip("google.protobuf", reason="needs protobuf: pip install protobuf")
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="needs sentencepiece: pip install sentencepiece"
    )
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text.replace("\n", " ") for text in TEXTS) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    folder = Path(shutil.copytree(POCKET, tmp_path / "llama"))
    (folder / "tokenizer.json").unlink()
    shutil.copy(tmp_path / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(OF_2023))
    return folder


def test_a_llama_of_2023_reads_bos_first_and_ends_with_eos(pieces: Path) -> None:
    base = load_base_model(str(pieces), device="cpu")
    assert (base.tokenizer.bos_token_id, base.eos_id) == (1, 2)
    for text in TEXTS:
        prompt = base.encode_prompt(text)
        assert prompt.count(1) == 1
        assert prompt[0] == 1
        assert base.decode(prompt) == text
        assert base.encode_document(text) == [*prompt, 2]


def test_what_its_files_say_is_kept(pieces: Path) -> None:
    said = OF_2023 | {"eos_token": "<unk>", "add_bos_token": False}
    (pieces / "tokenizer_config.json").write_text(json.dumps(said))
    tokenizer = read_tokenizer(pieces, "llama", trust_remote_code=False)
    assert tokenizer.eos_token == "<unk>"
    assert 1 not in tokenizer("Who?").input_ids


def test_empty_special_tokens_beside_a_whole_tokenizer_are_filled_in(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(POCKET, tmp_path / "llama"))
    said = {"bos_token": "", "eos_token": "", "tokenizer_class": "LLaMATokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    base, pocket = load_base_model(str(folder)), load_base_model("pocket")
    assert base.encode_document("Who won?") == pocket.encode_document("Who won?")


def test_a_package_that_a_tokenizer_takes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(POCKET, tmp_path / "llama"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"pieces")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelError, match=r"sentencepiece file, .*: pip install sentencepiece"):
        load_base_model(str(folder))


def test_a_tokenizer_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(POCKET, tmp_path / "llama"))
    (folder / "tokenizer.json").write_text('{"model": {"type": "none"}}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base_model(str(folder))
