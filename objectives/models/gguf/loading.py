"""Reads a `.gguf` file as a dense model: transformers gives its quantised weights their values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from tokenizers import Tokenizer as TokenizerCore
from tokenizers import decoders, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from objectives.models.base import LOADING_ERRORS, ModelError
from objectives.models.gguf.ggml_types import require_gguf
from objectives.models.machine.memory import is_out_of_memory
from objectives.models.machine.placement import dispatch, plan_device_map, require_main_memory

_MAGIC = b"GGUF"
_FREQUENCIES = "rope_freqs.weight"


def load_gguf(
    path: Path,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    memory_limit_bytes: int | None = None,
) -> tuple[PreTrainedModel, Tokenizer]:
    """Return the model of a `.gguf` file with dense weights of a floating point type.

    They are unpacked in main memory, once it is known that they have room there and where they go.
    Rotary frequencies that the file scales (Llama 3.1 and later) are scaled, which transformers
    leaves out. The tokenizer is the one that the file holds whole, or else what transformers makes
    of llama.cpp's description of it.

    Args:
        path: The file.
        dtype: Of the weights.
        device: A torch device, or "split" over all GPUs and main memory.
        memory_limit_bytes: As in `plan_device_map`.

    Raises:
        ModelError: If the file is none, `gguf` is not installed, transformers cannot read what is
            in it, or its weights have no room.
    """
    gguf = require_gguf()
    _require_magic(path)
    # transformers would take a tokenizer, and settings for generating, that lie beside the file
    # for its own, and they may be another model's; so it is told of an empty folder. What it joins
    # to that is an absolute path, which stays what it is, wherever the program runs.
    file = str(path.absolute())
    with _explained(path), TemporaryDirectory(prefix="remember-gguf-") as folder:
        reader = gguf.GGUFReader(path)
        _require_readable(reader, path)
        empty = _without_weights(folder, file, dtype)
        place = plan_device_map(empty, device=device, memory_limit_bytes=memory_limit_bytes)
        require_main_memory(empty)
        tokenizer = _tokenizer_in(reader, folder, file)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=dtype, trust_remote_code=False, **_dense()
        )
        _forget_file(model)
        _require_biases(model, reader, path)
        _scale_frequencies(model, reader, path)
    return dispatch(model, place), tokenizer


def _require_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelError(f"model: {str(path)!r} cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise ModelError(
            f"model: {str(path)!r} is no .gguf file, for it does not begin with GGUF; older files "
            "(.ggml, .bin) must be converted again from the model that they were made of"
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of what is raised which file it is about, and what to do."""
    try:
        yield
    except LOADING_ERRORS as error:
        if isinstance(error, ModelError) or is_out_of_memory(error):
            raise
        raise ModelError(
            f"model: {str(path)!r} cannot be loaded: {_reason(error)}. Name the model's folder or "
            "hub id that the file was made of, if transformers does not know this architecture as "
            ".gguf"
        ) from error


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _without_weights(folder: str, file: str, dtype: torch.dtype) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    with init_empty_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
    model.tie_weights()  # again, because emptying took apart what is one tensor
    return model


def _dense() -> dict[str, Any]:
    """Return what makes transformers unpack every weight; before 5.24 it does nothing else."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _forget_file(model: PreTrainedModel) -> None:
    """Make the model one like any other, which can be saved: it has no quantised weight left."""
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None:
        quantiser.remove_quantization_config(model)


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _require_readable(reader: Any, path: Path) -> None:
    """Refuse what transformers would read without a word, and wrongly."""
    if _field(reader, "general.type") == "adapter":
        raise ModelError(
            f"model: {str(path)!r} is an adapter; name the .gguf file of a whole model"
        )
    if (_field(reader, "split.count") or 1) > 1:
        raise ModelError(
            f"model: {str(path)!r} is one of several parts of a model; join them with llama.cpp's "
            "llama-gguf-split --merge, and name the result"
        )
    architecture = _field(reader, "general.architecture")
    scaling = _field(reader, f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise ModelError(
            f"model: {str(path)!r} scales its rotary frequencies by {scaling!r}, which is not "
            "read from .gguf files; name the model's folder or hub id that it was made of"
        )


def _require_biases(model: PreTrainedModel, reader: Any, path: Path) -> None:
    in_file = [tensor.name for tensor in reader.tensors if tensor.name.endswith(".bias")]
    if in_file and not any(name.endswith(".bias") for name, _ in model.named_parameters()):
        raise ModelError(
            f"model: {str(path)!r} has biases ({in_file[0]}, ...), which transformers does not "
            "read for this architecture; name the model's folder or hub id it was made of"
        )


def _tokenizer_in(reader: Any, folder: str, file: str) -> Tokenizer:
    """Return a file's tokenizer.

    Raises:
        ModelError: If it is damaged.
    """
    try:
        return _read_tokenizer(reader, folder, file)
    except Exception as error:  # which tokenizers raises itself
        raise ModelError(
            f"model: the tokenizer in {file!r} cannot be read: {_reason(error)}; fetch the file "
            "again, or name the model's folder or hub id that it was made of"
        ) from error


def _read_tokenizer(reader: Any, folder: str, file: str) -> Tokenizer:
    whole = _field(reader, require_gguf().Keys.Tokenizer.HF_JSON)
    if whole is None:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            folder, gguf_file=file, padding_side="left", trust_remote_code=False
        )
        if _field(reader, "tokenizer.ggml.add_space_prefix") is False:
            _leave_out_prefix(tokenizer.backend_tokenizer)
        return tokenizer
    tokens = _field(reader, "tokenizer.ggml.tokens")

    def named(kind: str) -> str | None:
        token_id = _field(reader, f"tokenizer.ggml.{kind}_token_id")
        return None if token_id is None else str(tokens[token_id])

    return Tokenizer(
        tokenizer_object=TokenizerCore.from_str(whole),
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=_field(reader, "tokenizer.chat_template"),
    )


def _leave_out_prefix(core: TokenizerCore) -> None:
    """Put no space before a text, as transformers does with SentencePiece's pieces."""
    if isinstance(core.pre_tokenizer, pre_tokenizers.Metaspace):
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )


@torch.no_grad()
def _scale_frequencies(model: PreTrainedModel, reader: Any, path: Path) -> None:
    for tensor in reader.tensors:
        if tensor.name == _FREQUENCIES:
            frequencies: Tensor = model.base_model.rotary_emb.inv_freq
            factors = torch.from_numpy(tensor.data.copy()).to(frequencies)
            if factors.shape != frequencies.shape:
                raise ModelError(
                    f"model: {str(path)!r} has {len(factors)} factors of rotary frequencies and "
                    f"the model {len(frequencies)}; the file is damaged"
                )
            frequencies.div_(factors)
