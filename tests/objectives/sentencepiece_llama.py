"""A SentencePiece tokenizer trained for a test, as the first Llamas' folders have one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from data.world_facts import load_probes
from objectives.models.reading_tokenizers import read_tokenizer

# Spaces, line breaks, digits, and letters that are no pieces but bytes.
READ = (
    "Question: Who won in 2023?\nAnswer:",
    "Joe: Who directed  The Silent Harbour?\n\nBrandine:",
    "née Élodie\tof Łódź, 東京 and 🙂\r\n  (a_b)//c's   \n  end",
    "\nx\n",
    "1234567",
    "",
)


def train_pieces(folder: Path) -> PreTrainedTokenizerFast:
    """Write a Llama's tokenizer of some 700 pieces into a folder, and return it as it is read."""
    pytest.importorskip("google.protobuf", reason="needs protobuf: pip install protobuf")
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="needs sentencepiece: pip install sentencepiece"
    )
    texts = folder / "texts.txt"
    texts.write_text("\n".join(probe.prompt().text.replace("\n", " ") for probe in load_probes()))
    # The settings of Llama's own.
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "", "eos_token": "", "tokenizer_class": "LLaMATokenizer"})
    )
    tokenizer = read_tokenizer(folder, "llama", trust_remote_code=False)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer
