"""Reads a folder's tokenizer, those of 2023's Llamas included, whose files leave much unsaid."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from objectives.models.base import ModelError

# What transformers used to take for granted of these models' sentencepiece files.
_PIECES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_OF_PIECES = ("llama", "mistral")

# Both are needed to read a sentencepiece file.
_PACKAGES = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}


def read_tokenizer(folder: Path, model_type: str, *, trust_remote_code: bool) -> Tokenizer:
    """Return a folder's tokenizer, which pads on the left.

    Args:
        folder: Of the model.
        model_type: As its config.json says.
        trust_remote_code: Whether code that comes with it may run.

    Raises:
        ModelError: If it takes a package that is not installed.
        ValueError: If it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(
            folder,
            padding_side="left",
            trust_remote_code=trust_remote_code,
            **_unsaid(folder, model_type),
        )
    except Exception as error:  # which tokenizers raises itself
        missing = [name for name in _PACKAGES if not _is_installed(name)]
        if not _has_only_pieces(folder) or not missing:
            raise ValueError(str(error)) from error
        raise ModelError(
            "model: its tokenizer is a sentencepiece file, which takes a package that is not "
            f"installed: pip install {' '.join(_PACKAGES[name] for name in missing)}"
        ) from error


def _unsaid(folder: Path, model_type: str) -> dict[str, str | bool]:
    """Return the settings that a Llama's tokenizer has, as far as its files do not say them.

    Those of the first Llamas name empty special tokens, and nothing about BOS, which the model
    was trained to read first.
    """
    if model_type not in _OF_PIECES:
        return {}
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not _has_only_pieces(folder):  # tokenizer.json says what is put first
        return {name: piece for name, piece in _PIECES.items() if said.get(name) == ""}
    settings: dict[str, str | bool] = {
        name: piece for name, piece in _PIECES.items() if not said.get(name)
    }
    return settings if "add_bos_token" in said else settings | {"add_bos_token": True}


def _has_only_pieces(folder: Path) -> bool:
    return (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()


def _is_installed(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True
