"""Loads a base model by name: the pocket model, a folder, or a hub id."""

from __future__ import annotations

import hashlib
import logging
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging

from objectives.models.base import NO_RULES, BaseModel, ModelError, TokenRules
from objectives.models.devices import check_device, default_device

POCKET = "pocket"

Precision = Literal["float32", "bfloat16"]

# What broken files, missing packages and misfitting shapes raise.
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def load_base_model(
    name: str,
    *,
    device: str | None = None,
    dtype: Precision | None = None,
    rules: TokenRules = NO_RULES,
) -> BaseModel:
    """Return the model ready to be asked and hooked: evaluation mode, nothing trainable.

    Args:
        name: "pocket", a folder with a Hugging Face model, or a hub id.
        device: A torch device; a GPU where there is one by default.
        dtype: Of its weights; by default bfloat16 on a GPU and float32 on a CPU.
        rules: What the study says about its tokens.

    Raises:
        ModelError: If it is not there, is not a causal language model, or its weights are pickled.
    """
    device = device or default_device()
    check_device(device)
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    if name == POCKET:
        with as_file(files("data") / "pocket") as folder:
            return _load(name, folder, device, dtype, rules)
    path = Path(name)
    if path.is_dir() or path.is_absolute() or name.startswith("."):
        if not (path / "config.json").is_file():
            raise ModelError(
                f"model: {name!r} is not a model folder (no config.json in it); name a folder "
                "that a Hugging Face model was saved to, a hub id, or “pocket”"
            )
        return _load(name, path, device, dtype, rules)
    return _load(name, name, device, dtype, rules)


def _load(
    name: str, source: Path | str, device: str, dtype: Precision, rules: TokenRules
) -> BaseModel:
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        # Code that comes with a model is never run: transformers would otherwise ask whether to.
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            source, padding_side="left", trust_remote_code=False
        )
    except _LOADING_ERRORS as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"model: {name!r} cannot be loaded: {reason}. Without a network, name a folder that "
            "holds config.json, the tokenizer and *.safetensors weights"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model: the tokenizer of {name!r} has no end-of-text token")
    for field in ("hidden_size", "max_position_embeddings"):
        if not isinstance(getattr(config, field, None), int):
            raise ModelError(f"model: the configuration of {name!r} names no {field}")
    model.requires_grad_(False)
    model.eval()
    model.to(device)
    base = BaseModel(
        name=name,
        source=str(source),
        digest=_digest(source, config),
        model=model,
        tokenizer=tokenizer,
        rules=rules,
    )
    _ = base.pad_id, base.token_ids  # a rule that does not fit is found now
    return base


def _digest(source: Path | str, config: PretrainedConfig) -> str:
    """Return what identifies the weights: the hub's commit, or a hash of the folder's files."""
    commit = getattr(config, "_commit_hash", None)
    if commit is not None:
        return f"{source}@{commit}"
    digest = hashlib.sha256()
    for path in sorted(Path(source).glob("*")):
        if path.suffix == ".safetensors" or path.name in ("config.json", "tokenizer.json"):
            with path.open("rb") as file:
                digest.update(path.name.encode())
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
